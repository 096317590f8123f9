"""Places all wanted models together: as many as fit by priority, then each as large as it may.

First every want is placed at its least, in the order that serves most; then they grow in order of
priority into what is left. Of wants that do not all fit those are placed that are worth most
(`Want.worth`). For wants that go on one card each, some order makes first-fit find
any packing there is (list them card by card), so for few wants all orders are tried and a model
is refused only when it must be; for many, what is tied down or large goes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations

from appliance.gpu.placement import DEFAULT_POLICY, SEARCHES
from appliance.gpu.space import Space
from appliance.gpu.types import KvType, Layout
from appliance.gpu.wants import Placement, PlacementPolicy, Want

PERMUTED_WANTS = 5
"""Up to this many wants every order is tried (120 of them)."""


def place_together(
    wants: Sequence[Want], start: Space, policy: PlacementPolicy = DEFAULT_POLICY
) -> dict[str, Placement]:
    """Placements by model for as many of these as there is room for, in the order of the wants."""
    best: dict[str, Placement] = {}
    best_score: tuple[float, ...] = ()
    for order in _orders(wants):
        placed = _place_least(order, start, policy)
        score = _score(wants, placed)
        if score > best_score:
            best, best_score = placed, score
        if len(placed) == len(wants):
            break
    grown = _grow(wants, best, start, policy)
    return {want.model: grown[want.model] for want in wants if want.model in grown}


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
        space = start.without(placed.values())
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
    """Most urgent first, each as near its wish as the others' promises leave room for; slots that
    equally urgent ones want are doubled in turn, so that nobody takes them all."""
    grown = dict(placed)
    for priority in sorted({want.priority for want in wants}):
        alike = sorted(
            (want for want in wants if want.priority == priority and want.model in placed),
            key=lambda want: want.model,
        )
        most = max((want.slots for want in alike), default=1)
        levels = (
            [1 << n for n in range(1, most.bit_length()) if 1 << n < most] if len(alike) > 1 else []
        )
        for slots in (*levels, most):
            for want in alike:
                others = [placement for name, placement in grown.items() if name != want.model]
                space = start.without(others)
                wish = replace(want, slots=max(min(want.slots, slots), want.min_slots))
                found = (search(wish, space, policy) for search in SEARCHES)
                placement = next((one for one in found if one is not None), None)
                if placement is not None:
                    grown[want.model] = placement
    return grown


def _score(wants: Sequence[Want], placed: Mapping[str, Placement]) -> tuple[float, ...]:
    """What those placed are worth, most urgent priority first; then how many are all on cards."""
    priorities = sorted({want.priority for want in wants})
    of = {want.model: want for want in wants}
    served = tuple(
        sum(of[name].worth for name in placed if of[name].priority == priority)
        for priority in priorities
    )
    whole = sum(
        1 for name, found in placed.items() if found.gpu_layers >= of[name].footprint.n_layers
    )
    return (*served, whole)
