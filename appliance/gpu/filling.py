"""How many of a model's layers each card takes, when cards are filled in order. Pure.

Filling the cards in order, each as far as it goes, finds a split whenever one exists for that
order: a card's bytes only grow with the layers on it, so a fuller earlier card never leaves more
for the later ones (the usual exchange argument).

Where the footprint has a `LayerTable`, nothing else is asked while cards are filled. A load of the
very split that is found may have been seen to need more than the table says: who searches asks for
the `sizes` of what was found, and where they are too much searches again with care, which asks for
the bytes of each split that is tried, as it is done for footprints without a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.gpu.types import Footprint, KvType, Layout

IMPOSSIBLE = 1 << 60
"""A footprint that answers this many bytes says: not in this layout, on no card of any size."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What an engine offers, apart from where it runs."""

    context_window: int
    slots: int
    kv_type: KvType


class Filling:
    """One model in one configuration: how its layers fill cards."""

    def __init__(
        self, footprint: Footprint, configuration: Configuration, *, with_care: bool = False
    ) -> None:
        self._footprint, self._configuration = footprint, configuration
        self.layers = footprint.n_layers
        self._layout = _layout(configuration, (), self.layers)
        self._table = None if with_care else footprint.layer_table(self._layout)
        if self._table is not None:
            self._least_bytes = self._table.sums[-1]
            self._least_count = self._table.in_lightest
        else:  # each further card only adds its own overhead to what all on one card take
            on_one = self.sizes((self.layers,), self.layers)[0]
            self._least_bytes = on_one if on_one < IMPOSSIBLE else 0
            self._least_count = self.layers

    def bounds(self, rooms: Sequence[int]) -> tuple[list[int], list[int]]:
        """What each of several cards with so much room that share all layers holds at most: bytes,
        and layers, of which those heavier than the lightest count as several."""
        if self._table is not None:
            return self._table.bounds(rooms)
        most = self._footprint.most_layers
        return list(rooms), [most(self._layout, room_bytes) for room_bytes in rooms]

    def may_hold(self, sizes: Sequence[int], counts: Sequence[int]) -> bool:
        """False where cards with these bounds are certainly too few for all layers."""
        return sum(sizes) >= self._least_bytes and sum(counts) >= self._least_count

    def fill(
        self, rooms: Sequence[int], layers: int, *, uses_all: bool = False
    ) -> list[int] | None:
        """How many of the last `layers` go on each card with so much room, in this order; None
        where some are left over. `uses_all`: nor where a card takes none before all are placed, for
        whom fewer cards are known not to do."""
        if self._table is not None:
            counts = self._table.fill(layers, rooms)
        else:
            counts = self._search(rooms, layers)
        if sum(counts) < layers or (uses_all and 0 in counts):
            return None
        return counts + [0] * (len(rooms) - len(counts))

    def sizes(self, counts: Sequence[int], layers: int) -> tuple[int, ...]:
        """The bytes on each card, and on the host."""
        return self._footprint.bytes_by_device(_layout(self._configuration, counts, layers))

    def _search(self, rooms: Sequence[int], layers: int) -> list[int]:
        counts: list[int] = []
        left = layers
        for room_bytes in rooms:
            counts.append(self._take(counts, left, layers, room_bytes))
            left -= counts[-1]
            if left == 0:
                break
        return counts

    def _take(self, before: Sequence[int], left: int, layers: int, room_bytes: int) -> int:
        """How many of the layers left the next card holds, those behind it standing for the rest.

        Layers are mostly alike, so the answer is close below the most that is possible, and guessed
        from the bytes of few and of many; and halved in turn, for those that are not."""

        def bytes_of(take: int) -> int:
            rest = left - take
            trial = (*before, take, rest) if rest else (*before, take)
            return self.sizes(trial, layers)[len(before)]

        most = min(left, self._footprint.most_layers(self._layout, room_bytes))
        if not most:
            return 0
        most_bytes = bytes_of(most)
        if most_bytes <= room_bytes:
            return most
        least_bytes = bytes_of(1) if most > 1 else most_bytes
        if least_bytes > room_bytes:
            return 0
        low, high, halves = 1, most, False
        while high - low > 1:
            share = (room_bytes - least_bytes) / (most_bytes - least_bytes)
            middle = (low + high) // 2 if halves else low + int(share * (high - low))
            middle = min(max(middle, low + 1), high - 1)
            size = bytes_of(middle)
            if size <= room_bytes:
                low, least_bytes = middle, size
            else:
                high, most_bytes = middle, size
            halves = not halves
        return low


def _layout(configuration: Configuration, counts: Sequence[int], layers: int) -> Layout:
    return Layout(
        configuration.context_window,
        configuration.slots,
        configuration.kv_type,
        layers,
        tuple(map(float, counts)),
    )
