"""Places all wanted models together: as many as fit by priority, then each as large as it may.

First every want is placed at its least, in the order that serves most; then each grows in order
of priority into what is left. For wants that go on one card each, some order makes first-fit find
any packing there is (list them card by card), so for few wants all orders are tried and a model
is refused only when it must be; for many, what is tied down or large goes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from appliance.gpu import refusal
from appliance.gpu.placement import DEFAULT_POLICY, SEARCHES, search_any
from appliance.gpu.space import Space, space_in
from appliance.gpu.types import (
    Inventory,
    KvType,
    Layout,
    NoFit,
    Placement,
    PlacementPolicy,
    Want,
)

PERMUTED_WANTS = 5
"""Up to this many wants every order is tried (120 of them)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Placements for all wanted models together, in the order of the wants."""

    placements: tuple[Placement, ...]
    refused: tuple[NoFit, ...]

    @property
    def reserved(self) -> dict[str, int]:
        """Bytes promised per device by all placements."""
        total: dict[str, int] = {}
        for placement in self.placements:
            for uuid, size in placement.by_device.items():
                total[uuid] = total.get(uuid, 0) + size
        return total


def place_all(
    wants: Sequence[Want],
    inventory: Inventory,
    reserved: Mapping[str, int] | None = None,
    *,
    policy: PlacementPolicy = DEFAULT_POLICY,
) -> Plan:
    """Placements for all of these models at once; `reserved` is what others hold already."""
    start = space_in(inventory, reserved or {}, policy)
    best: dict[str, Placement] = {}
    best_score: tuple[int, ...] = ()
    for order in _orders(wants):
        placed = _place_least(order, start, policy)
        score = _score(wants, placed)
        if score > best_score:
            best, best_score = placed, score
        if len(placed) == len(wants):
            break
    grown = _grow(wants, best, start, policy)
    refused = tuple(
        refusal.explain(want, _without(start, grown.values()), policy, search_any)
        for want in wants
        if want.model not in grown
    )
    return Plan(tuple(grown[want.model] for want in wants if want.model in grown), refused)


def _orders(wants: Sequence[Want]) -> Iterator[Sequence[Want]]:
    """Orders worth trying: what is tied down or large first; all of them for few wants."""
    ranked = sorted(
        wants,
        key=lambda want: (
            not want.pin,
            not want.exclusive,
            want.priority,
            -_least_bytes(want),
            want.model,
        ),
    )
    yield ranked
    yield sorted(ranked, key=lambda want: (want.priority, -_least_bytes(want), want.model))
    if len(wants) <= PERMUTED_WANTS:
        yield from permutations(ranked)


def _least(want: Want, kv_type: KvType) -> Want:
    window = want.least_window
    return replace(
        want,
        context_window=window,
        slots=want.min_slots,
        kv_types=(kv_type,),
        min_slots=want.min_slots,
    )


def _least_bytes(want: Want) -> int:
    layers = want.footprint.n_layers
    return min(
        sum(
            want.footprint.bytes_by_device(
                Layout(want.least_window, want.min_slots, kv_type, layers, (1.0,))
            )
        )
        for kv_type in want.kv_types
    )


def _place_least(
    order: Sequence[Want], start: Space, policy: PlacementPolicy
) -> dict[str, Placement]:
    """Each want in turn at its least, on cards if it can be, else as the config allows."""
    placed: dict[str, Placement] = {}
    for want in order:
        space = _without(start, placed.values())
        for search in SEARCHES:
            found = next(
                (
                    placement
                    for kv_type in reversed(want.kv_types)
                    if (placement := search(_least(want, kv_type), space, policy)) is not None
                ),
                None,
            )
            if found is not None:
                placed[want.model] = found
                break
    return placed


def _grow(
    wants: Sequence[Want],
    placed: Mapping[str, Placement],
    start: Space,
    policy: PlacementPolicy,
) -> dict[str, Placement]:
    """Most urgent first, each as near its wish as the others' promises leave room for."""
    grown = dict(placed)
    for want in sorted(wants, key=lambda want: (want.priority, want.model)):
        if want.model not in grown:
            continue
        others = [placement for name, placement in grown.items() if name != want.model]
        space = _without(start, others)
        for search in SEARCHES:
            placement = search(want, space, policy)
            if placement is not None:
                grown[want.model] = placement
                break
    return grown


def _without(start: Space, placements: Iterable[Placement]) -> Space:
    """The space left once these placements are made."""
    room, taken, closed = dict(start.room), set(start.taken), set(start.closed)
    for placement in placements:
        for uuid, size in placement.by_device.items():
            room[uuid] = room.get(uuid, 0) - size
        taken.update(placement.cards)
        if placement.exclusive:
            closed.update(placement.cards)
    return Space(room, start.cards, frozenset(taken), frozenset(closed))


def _score(wants: Sequence[Want], placed: Mapping[str, Placement]) -> tuple[int, ...]:
    """How many are placed, most urgent priority first; then how many entirely on cards."""
    priorities = sorted({want.priority for want in wants})
    of = {want.model: want for want in wants}
    served = tuple(
        sum(1 for name in placed if of[name].priority == priority) for priority in priorities
    )
    whole = sum(
        1 for name, found in placed.items() if found.gpu_layers >= of[name].footprint.n_layers
    )
    return (*served, whole)
