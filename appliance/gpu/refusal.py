"""Why nothing fits, in numbers, and what near the wish would. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeAlias

from appliance.gpu.fit import largest
from appliance.gpu.space import Space
from appliance.gpu.types import GIB, HOST, KvType, Layout
from appliance.gpu.wants import Choice, NoFit, Placement, PlacementPolicy, Want

Searching: TypeAlias = Callable[[Want, Space, PlacementPolicy], Placement | None]

LEAST_USEFUL_WINDOW = 512
"""No shorter window is proposed."""


def explain(want: Want, space: Space, policy: PlacementPolicy, search: Searching) -> NoFit:
    """The refusal of a want that no allowed configuration satisfies."""
    cards = space.cards_for(want)
    needed, where = _least_need(want, bool(cards))
    available = {uuid: space.room.get(uuid, 0) for uuid in (*cards, HOST)}
    if not cards and space.cards:
        reason = _why_no_card(want, space)
    else:
        is_split = want.allow_split and want.footprint.n_layers > 1
        room = (sum if is_split else max)(available[uuid] for uuid in cards or (HOST,))
        reason = (
            f"{want.model} needs at least {_gib(needed)} on {where} "
            f"({want.least_window} tokens x {want.min_slots} slots, KV {want.kv_types[-1]}); "
            f"{_gib(room)} can be promised"
        )
    choices = tuple(_choices(want, space, policy, search, cards, needed))
    return NoFit(want.model, reason, needed, available, choices)


def _least_need(want: Want, has_cards: bool) -> tuple[int, str]:
    """Bytes of the smallest allowed configuration on one card (or the host)."""
    layers = want.footprint.n_layers if has_cards else 0
    if want.gpu_layers is not None:
        layers = min(want.gpu_layers, layers)
    shares = (float(layers),) if has_cards else ()
    sizes = [
        want.footprint.bytes_by_device(
            Layout(want.least_window, want.min_slots, kv_type, layers, shares)
        )[0]
        for kv_type in want.kv_types
    ]
    return min(sizes), "a card" if has_cards else "the host"


def _why_no_card(want: Want, space: Space) -> str:
    if want.pin and not set(want.pin) & set(space.cards):
        return f"{want.model} is pinned to {', '.join(want.pin)}, which is not there or not usable"
    if want.exclusive:
        return f"{want.model} wants a card for itself; each one is taken"
    return f"{want.model} may use no card: those it could use are exclusively another model's"


def _choices(
    want: Want,
    space: Space,
    policy: PlacementPolicy,
    search: Searching,
    cards: tuple[str, ...],
    needed: int,
) -> Iterator[Choice]:
    """One thing changed at a time, nearest to the wish first; then what would have to be freed."""
    one_slot = replace(want, slots=1, min_slots=1)
    if want.min_slots > 1 and (found := search(one_slot, space, policy)):
        yield Choice(f"min_slots = {found.slots}", slots=found.slots)
    for kv_type in (KvType.Q8_0, KvType.Q4_0):
        smaller = replace(one_slot, kv_types=(kv_type,))
        if kv_type not in want.kv_types and search(smaller, space, policy):
            yield Choice(f"KV type {kv_type} with 1 slot", slots=1, kv_type=kv_type)
            break
    window = largest(
        LEAST_USEFUL_WINDOW,
        want.least_window - 1,
        lambda tokens: (
            search(
                replace(one_slot, context_window=tokens, min_context_window=tokens), space, policy
            )
            is not None
        ),
    )
    if window is not None:
        window = window // 256 * 256
        yield Choice(f"a context window of {window} tokens", context_window=window, slots=1)
    if want.gpu_layers is not None and search(
        replace(want, gpu_layers=None, allow_partial=True), space, policy
    ):
        yield Choice('gpu_layers = "auto"')
    elif not want.allow_partial and search(replace(want, allow_partial=True), space, policy):
        yield Choice("some layers on the host (slower)")
    if not want.allow_host and search(replace(want, allow_host=True), space, policy):
        yield Choice("all layers on the host (much slower)")
    best = max(cards, key=lambda uuid: (space.room[uuid], uuid), default=HOST)
    missing = needed - space.room.get(best, 0)
    if missing > 0:
        yield Choice(f"{_gib(missing)} more on {best}", free_bytes=missing, uuid=best)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
