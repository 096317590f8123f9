"""Chooses where models go: cards, split, layers on cards, window, slots, KV type. Pure.

The order in which a wish is cut down, each step only as far as the config allows it and each
told in `Placement.reasons`:

1. as wished, on the fewest cards that hold it, the tightest first (keeps large holes whole);
2. fewer slots; then a smaller KV type (with as many slots as that allows); then a smaller window;
3. the same two steps with idle residents evicted, the cheapest set that makes room;
4. some layers on the host, then with evictions, then all on the host.

Sharing the cards comes before evicting, because two models that fit together when one is a little
smaller do not evict each other for ever; a card comes before the host, because a layer in RAM
costs more at every token than a reload costs once (docs/adr/0031).

What is feasible is monotone (fewer slots, a shorter window, fewer layers on cards never need
more), so every step is a binary search; ties are broken by room and UUID, never by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import TypeAlias

from appliance.gpu import refusal
from appliance.gpu.fit import (
    Configuration,
    Fit,
    fit_on_cards,
    fit_on_host,
    fit_partly,
    largest,
)
from appliance.gpu.space import Space, space_in
from appliance.gpu.types import (
    HOST,
    Evict,
    Inventory,
    KvType,
    NoFit,
    Placement,
    PlacementPolicy,
    Resident,
    Want,
)

WINDOW_STEP = 256
"""Windows are cut in the cache's own steps (`GGML_PAD(n_ctx, 256)`)."""
EXACT_VICTIMS = 6
"""Up to this many residents every set of victims is weighed; beyond, greedily."""

DEFAULT_POLICY = PlacementPolicy()

Fits: TypeAlias = Callable[[Configuration], Fit | None]
Search: TypeAlias = "Callable[[Want, Space, PlacementPolicy], Placement | None]"


def place(
    want: Want,
    inventory: Inventory,
    reserved: Mapping[str, int],
    *,
    residents: Sequence[Resident] = (),
    policy: PlacementPolicy = DEFAULT_POLICY,
    closed: frozenset[str] = frozenset(),
) -> Placement | Evict | NoFit:
    """Where one more model goes, given what is promised and which idle residents could leave."""
    space = space_in(inventory, reserved, policy, closed)
    for search in SEARCHES:
        placement = search(want, space, policy)
        if placement is not None:
            return placement
        if residents and (evict := _evict(want, space, reserved, residents, policy, search)):
            return evict
    return refusal.explain(want, space, policy, search_any)


def _search_cards(want: Want, space: Space, policy: PlacementPolicy) -> Placement | None:
    """Everything on cards, shrunk as little as the order above allows."""
    cards = space.cards_for(want)
    if not cards:
        return None
    most = len(cards) if want.allow_split else 1

    @cache
    def fit(configuration: Configuration) -> Fit | None:
        return fit_on_cards(
            want.footprint,
            configuration,
            space.room,
            cards,
            most_cards=most,
            is_packing=policy.binpack,
        )

    return _shrink(want, fit)


def _search_partly(want: Want, space: Space, policy: PlacementPolicy) -> Placement | None:
    cards = space.cards_for(want)
    if not cards or not want.allow_partial:
        return None
    most = len(cards) if want.allow_split else 1
    for kv_type in want.kv_types:
        least = Configuration(want.least_window, want.min_slots, kv_type)
        fit = fit_partly(want.footprint, least, space.room, cards, most_cards=most)
        if fit is not None:
            note = f"{fit.gpu_layers} of {want.footprint.n_layers} layers on cards"
            return _placement(want, fit, (note,))
    return None


def _search_host(want: Want, space: Space, policy: PlacementPolicy) -> Placement | None:
    if space.cards and not want.allow_host:
        return None
    if want.pin and HOST not in want.pin and space.cards:
        return None
    return _shrink(want, lambda chosen: fit_on_host(want.footprint, chosen, space.room))


SEARCHES: tuple[Search, ...] = (_search_cards, _search_partly, _search_host)


def search_any(want: Want, space: Space, policy: PlacementPolicy) -> Placement | None:
    """Anything at all that is allowed."""
    found = (search(want, space, policy) for search in SEARCHES)
    return next((placement for placement in found if placement is not None), None)


def _shrink(want: Want, fit: Fits) -> Placement | None:
    """The first configuration that fits, in the stated order of shrinking."""
    for kv_type in want.kv_types:

        def has_slots(slots: int, kv_type: KvType = kv_type) -> bool:
            return fit(Configuration(want.context_window, slots, kv_type)) is not None

        slots = largest(want.min_slots, want.slots, has_slots)
        if slots is not None:
            return _fitted(want, fit, Configuration(want.context_window, slots, kv_type))
    for kv_type in reversed(want.kv_types):

        def has_window(window: int, kv_type: KvType = kv_type) -> bool:
            return fit(Configuration(window, want.min_slots, kv_type)) is not None

        window = largest(want.least_window, want.context_window, has_window)
        if window is not None:
            window = max(window // WINDOW_STEP * WINDOW_STEP, want.least_window)
            return _fitted(want, fit, Configuration(window, want.min_slots, kv_type))
    return None


def _fitted(want: Want, fit: Fits, chosen: Configuration) -> Placement:
    found = fit(chosen)
    assert found is not None, "a configuration that fitted must fit again"
    return _placement(want, found, ())


def _placement(want: Want, fit: Fit, notes: tuple[str, ...]) -> Placement:
    chosen = fit.configuration
    reasons = list(notes)
    if not fit.cards:
        reasons.append("on the host alone")
    elif len(fit.cards) > 1:
        reasons.append(f"split over {len(fit.cards)} cards")
    if chosen.slots < want.slots:
        reasons.append(f"slots {want.slots} to {chosen.slots}")
    if chosen.kv_type is not want.kv_types[0]:
        reasons.append(f"KV type {want.kv_types[0]} to {chosen.kv_type}")
    if chosen.context_window < want.context_window:
        reasons.append(f"context window {want.context_window} to {chosen.context_window}")
    return Placement(
        model=want.model,
        devices=fit.shares,
        gpu_layers=fit.gpu_layers,
        context_window=chosen.context_window,
        slots=chosen.slots,
        kv_type=chosen.kv_type,
        tensor_split=tuple(float(count) for count in fit.counts),
        exclusive=want.exclusive,
        reasons=tuple(reasons),
    )


def _evict(
    want: Want,
    space: Space,
    reserved: Mapping[str, int],
    residents: Sequence[Resident],
    policy: PlacementPolicy,
    search: Search,
) -> Evict | None:
    """The cheapest set of residents whose going makes room, and the placement that follows."""

    def after(victims: Sequence[Resident]) -> Placement | None:
        return search(want, _freed(space, reserved, victims), policy)

    ordered = sorted(residents, key=lambda resident: (resident.cost, resident.instance))
    if after(ordered) is None:
        return None
    if len(ordered) <= EXACT_VICTIMS:
        sets = sorted(
            (
                tuple(chosen)
                for n in range(1, len(ordered) + 1)
                for chosen in combinations(ordered, n)
            ),
            key=lambda chosen: (sum(r.cost for r in chosen), len(chosen)),
        )
        chosen = next(victims for victims in sets if after(victims) is not None)
    else:
        chosen = _pruned(ordered, after)
    placement = after(chosen)
    assert placement is not None
    names = tuple(resident.instance for resident in chosen)
    return Evict(names, placement, sum(resident.cost for resident in chosen))


def _pruned(
    ordered: Sequence[Resident], after: Callable[[Sequence[Resident]], Placement | None]
) -> tuple[Resident, ...]:
    """Cheapest first until it fits; then those not needed after all stay, dearest first."""
    chosen: list[Resident] = []
    for resident in ordered:
        chosen.append(resident)
        if after(chosen) is not None:
            break
    for resident in reversed(tuple(chosen)):
        rest = [kept for kept in chosen if kept is not resident]
        if rest and after(rest) is not None:
            chosen = rest
    return tuple(chosen)


def _freed(space: Space, reserved: Mapping[str, int], victims: Sequence[Resident]) -> Space:
    room, left = dict(space.room), dict(reserved)
    for resident in victims:
        for share in resident.shares:
            if share.uuid in room:
                room[share.uuid] += share.vram_bytes
            left[share.uuid] = left.get(share.uuid, 0) - share.vram_bytes
    taken = frozenset(uuid for uuid in space.taken if left.get(uuid, 0) > 0)
    return replace(space, room=room, taken=taken)
