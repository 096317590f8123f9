"""Chooses where models go: cards, split, layers on cards, window, slots, KV type. Pure.

The order in which a wish is cut down, each step only as far as the config allows it and each
told in `Placement.reasons`:

1. as wished, on the fewest cards that hold it, the tightest first (keeps large holes whole);
2. fewer slots; then a smaller KV type (with as many slots as that allows); then a smaller window;
3. some layers on the host, as few as can be; then all on the host.

Who may come to 3 is the asker's to say (`Want.least_on_cards`): the scheduler evicts others first
where that brings a model's layers onto cards (`scheduler/best.py`, docs/adr/0031, 0080).

What is feasible is monotone (fewer slots, a shorter window, fewer layers on cards never need
more), so every step is a binary search; ties are broken by room and UUID, never by chance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from appliance.gpu.filling import Configuration
from appliance.gpu.fit import (
    Fit,
    fit_exactly,
    fit_on_cards,
    fit_on_host,
    fit_partly,
    largest,
)
from appliance.gpu.space import Space
from appliance.gpu.types import HOST, KvType
from appliance.gpu.wants import Placement, PlacementPolicy, Want

WINDOW_STEP = 256
"""Windows are cut in the cache's own steps (`GGML_PAD(n_ctx, 256)`)."""

DEFAULT_POLICY = PlacementPolicy()

Fits: TypeAlias = Callable[[Configuration], Fit | None]
Search: TypeAlias = "Callable[[Want, Space, PlacementPolicy], Placement | None]"


def _search_cards(want: Want, space: Space, policy: PlacementPolicy) -> Placement | None:
    """Everything on cards, shrunk as little as the order above allows."""
    cards = space.cards_for(want)
    if not cards or _is_less_than_all(want):
        return None
    most = len(cards) if want.allow_split else 1
    known: dict[Configuration, Fit | None] = {}

    def fit(configuration: Configuration) -> Fit | None:
        if configuration not in known:
            known[configuration] = fit_on_cards(
                want.footprint,
                configuration,
                space.room,
                cards,
                most_cards=most,
                is_packing=policy.binpack,
            )
        return known[configuration]

    return _shrink(want, fit)


def _search_partly(want: Want, space: Space, policy: PlacementPolicy) -> Placement | None:
    cards = space.cards_for(want)
    if cards and _is_less_than_all(want):
        return _search_exactly(want, space, cards, want.gpu_layers or 0)
    if not cards or not want.allow_partial or want.least_on_cards == 1.0:
        return None
    most = len(cards) if want.allow_split else 1
    for kv_type in want.kv_types:
        least = Configuration(want.least_window, want.min_slots, kv_type)
        fit = fit_partly(want.footprint, least, space.room, cards, most_cards=most)
        if fit is not None and fit.gpu_layers >= want.least_on_cards * want.footprint.n_layers:
            note = f"{fit.gpu_layers} of {want.footprint.n_layers} layers on cards"
            return _placement(want, fit, (note,))
    return None


def _search_exactly(
    want: Want, space: Space, cards: tuple[str, ...], layers: int
) -> Placement | None:
    """As wished or shrunk, with so many layers on cards."""
    most = len(cards) if want.allow_split else 1

    def fit(configuration: Configuration) -> Fit | None:
        return fit_exactly(
            want.footprint, configuration, space.room, cards, layers, most_cards=most
        )

    notes = (f"{layers} of {want.footprint.n_layers} layers on cards, as configured",)
    return _shrink(want, fit, notes)


def _search_host(want: Want, space: Space, policy: PlacementPolicy) -> Placement | None:
    if space.cards and (not want.allow_host or want.least_on_cards > 0.0):
        return None
    if space.cards and want.gpu_layers:
        return None
    if want.pin and HOST not in want.pin and space.cards:
        return None
    return _shrink(want, lambda chosen: fit_on_host(want.footprint, chosen, space.room))


SEARCHES: tuple[Search, ...] = (_search_cards, _search_partly, _search_host)


def search_any(want: Want, space: Space, policy: PlacementPolicy) -> Placement | None:
    """Anything at all that is allowed."""
    for search in SEARCHES:
        placement = search(want, space, policy)
        if placement is not None:
            return placement
    return None


def _is_less_than_all(want: Want) -> bool:
    return want.gpu_layers is not None and want.gpu_layers < want.footprint.n_layers


def _shrink(want: Want, fit: Fits, notes: tuple[str, ...] = ()) -> Placement | None:
    """The first configuration that fits, in the stated order of shrinking."""
    for kv_type in want.kv_types:

        def has_slots(slots: int, kv_type: KvType = kv_type) -> bool:
            return fit(Configuration(want.context_window, slots, kv_type)) is not None

        slots = largest(want.min_slots, want.slots, has_slots)
        if slots is not None:
            return _fitted(want, fit, Configuration(want.context_window, slots, kv_type), notes)
    for kv_type in reversed(want.kv_types):

        def has_window(window: int, kv_type: KvType = kv_type) -> bool:
            return fit(Configuration(window, want.min_slots, kv_type)) is not None

        window = largest(want.least_window, want.context_window, has_window)
        if window is not None:
            window = max(window // WINDOW_STEP * WINDOW_STEP, want.least_window)
            return _fitted(want, fit, Configuration(window, want.min_slots, kv_type), notes)
    return None


def _fitted(want: Want, fit: Fits, chosen: Configuration, notes: tuple[str, ...]) -> Placement:
    found = fit(chosen)
    assert found is not None, "a configuration that fitted must fit again"
    return _placement(want, found, notes)


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
        on_cards=min(fit.gpu_layers / want.footprint.n_layers, 1.0),
        tensor_split=tuple(float(count) for count in fit.counts),
        exclusive=want.exclusive,
        reasons=tuple(reasons),
    )
