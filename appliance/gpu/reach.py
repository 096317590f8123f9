"""Whether a want fits on cards, for those who ask far oftener than they place. Pure.

Who looks for victims asks dozens of times whether there is room yet, and where a model then goes
but once. A bound on what the cards together hold answers most of that. For the rest it is enough to
find the fewest cards that hold the least that the want may be cut down to: which cards are tightest
and how much more could be had is not asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import ge

from appliance.gpu.filling import Configuration, Filling
from appliance.gpu.fit import Runs
from appliance.gpu.types import HOST
from appliance.gpu.wants import Want


class Reach:
    """One want. Nothing is known where its cards are not all alike to it, or where it may be on the
    host, which is another question."""

    def __init__(self, want: Want) -> None:
        on_cards_alone = want.least_on_cards == 1.0 or not (want.allow_partial or want.allow_host)
        layers = want.footprint.n_layers
        is_part = want.gpu_layers is not None and want.gpu_layers < layers
        self._is_known = on_cards_alone and not (want.pin or want.exclusive or is_part)
        self._can_split = want.allow_split
        self._least = [
            Filling(want.footprint, Configuration(want.least_window, want.min_slots, kv_type))
            for kv_type in want.kv_types
        ]

    def may_fit(self, room: Mapping[str, int]) -> bool:
        """False where the cards certainly have too little room together."""
        rooms = [size for uuid, size in room.items() if uuid != HOST]
        if not self._is_known or not rooms:
            return True
        return any(
            filling.fill([max(rooms)], filling.layers) or filling.may_hold(*filling.bounds(rooms))
            for filling in self._least
        )

    def fits(self, room: Mapping[str, int]) -> bool | None:
        """None where it is to be searched for, as where a load was seen to need more than was
        reckoned."""
        rooms = sorted([size for uuid, size in room.items() if uuid != HOST])
        if not self._is_known or not rooms:
            return None
        for filling in self._least:
            split = Runs(filling, rooms).fewest(len(rooms) if self._can_split else 1)
            if split is not None:
                homes = [*(rooms[n] for n in split[0]), room.get(HOST, 0)]
                needed = filling.sizes(split[1], filling.layers)
                return True if all(map(ge, homes, needed)) else None
        return False
