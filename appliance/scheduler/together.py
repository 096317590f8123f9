"""Who can be loaded beside whom, and as how much: what a plan shows and the scheduler loads by.

Two models with four slots each that fit a card alone, and with two slots each side by side, would
evict each other for ever if each were loaded as it wishes whenever the other has gone. So a model
that others are used beside wishes for no more than its part: what it has where as many of them as
possible are loaded at once, each about as well placed as alone (`best`), the pinned first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from appliance.gpu.joint import place_together
from appliance.gpu.placement import search_any
from appliance.gpu.space import Space
from appliance.gpu.types import HOST
from appliance.gpu.wants import Placement, PlacementPolicy, Want
from appliance.scheduler.best import enough
from appliance.scheduler.values import ModelSpec, Use

_BEFORE_ALL = -1_000_000
"""Priority of what is never evicted."""
_AS_COUNTED = PlacementPolicy(reserve_bytes=0, host_reserve_bytes=0)
"""The core's free bytes are without the reserves."""


@dataclass(frozen=True, slots=True)
class Together:
    """Placements by model: of those loaded at once, and of each were it alone with the pinned."""

    resident: Mapping[str, Placement]
    alone: Mapping[str, Placement | None]
    beside_pinned: Space
    """What the pinned leave to each alone."""


def together(
    wants: Sequence[Want], pinned: set[str], space: Space, policy: PlacementPolicy
) -> Together:
    wants = [replace(w, priority=_BEFORE_ALL) if w.model in pinned else w for w in wants]
    kept = place_together([want for want in wants if want.model in pinned], space, policy)
    rest = space.without(kept.values())
    alone = {
        want.model: kept.get(want.model) if want.model in pinned else search_any(want, rest, policy)
        for want in wants
    }
    fitting = [
        replace(want, least_on_cards=enough(found.on_cards, sum(found.by_device.values())))
        for want in wants
        if (found := alone[want.model]) is not None
    ]
    return Together(place_together(fitting, space, policy), alone, rest)


def parts(models: Mapping[ModelSpec, Use], capacity: Mapping[str, int]) -> dict[str, ModelSpec]:
    """Of these models those that wish for more than their part, with that as their wish. Nobody's
    part is less than he needs: swapping costs seconds, too few slots cost minutes.
    Where not all fit side by side, it is those that are worth most."""
    cards = tuple(device for device in capacity if device != HOST)
    pinned = {model.name for model in models if model.pinned}
    wants = {m.name: m.demand for m in models if isinstance(m.demand, Want)}
    weighed = [
        _in_use(wants[model.name], use) for model, use in models.items() if model.name in wants
    ]
    found = together(weighed, pinned, Space(dict(capacity), cards), _AS_COUNTED)
    return {
        model.name: replace(model, demand=lessened, slots=lessened.slots)
        for model in models
        if (placed := found.resident.get(model.name)) is not None
        and (lessened := _lessened(wants[model.name], placed)) != wants[model.name]
    }


def _in_use(want: Want, use: Use) -> Want:
    slots = min(max(want.min_slots, use.slots), want.slots)
    return replace(want, worth=use.worth_s, min_slots=slots)


def _lessened(want: Want, placed: Placement) -> Want:
    return replace(
        want,
        slots=min(want.slots, max(placed.slots, want.min_slots)),
        context_window=min(want.context_window, placed.context_window),
        kv_types=want.kv_types[want.kv_types.index(placed.kv_type) :],
    )
