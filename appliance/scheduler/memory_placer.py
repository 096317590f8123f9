"""Between the scheduler's question (does this model fit these free bytes?) and the GPU room."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from appliance.gpu import refusal
from appliance.gpu.placement import search_any
from appliance.gpu.space import Space
from appliance.gpu.types import HOST, NoFit, PlacementPolicy, Want
from appliance.scheduler.values import Capacity, Fit, Misfit, ModelSpec

ANSWERS_KEPT = 4096
"""Placements remembered: the core asks about the same free bytes again and again, and a refusal
with its near choices takes milliseconds to work out."""


class MemoryPlacer:
    """`scheduler.values.Placer` on the GPU room's placement.

    `capacity` gives the scheduler's view, from which it is seen whether a card holds something of
    ours: an exclusive model takes none of those, and nobody else a card of a loaded exclusive one.
    A card that would be empty after an eviction counts as empty.
    """

    def __init__(
        self, capacity: Callable[[], Capacity], is_exclusive: Callable[[str], bool]
    ) -> None:
        self._capacity = capacity
        self._is_exclusive = is_exclusive
        self._answers: dict[tuple[object, ...], Fit | Misfit] = {}

    def place(self, spec: ModelSpec, free: Mapping[str, int]) -> Fit | Misfit:
        want = spec.demand
        assert isinstance(want, Want), "models with memory carry a Want"
        cards = tuple(uuid for uuid in free if uuid != HOST)
        space = Space(dict(free), cards, *self._held(free))
        key = (want, *free.items(), space.taken, space.closed)
        answer = self._answers.get(key)
        if answer is None:
            if len(self._answers) >= ANSWERS_KEPT:
                self._answers.clear()
            answer = self._answers[key] = _placed(want, space)
        return answer

    def _held(self, free: Mapping[str, int]) -> tuple[frozenset[str], frozenset[str]]:
        """Cards that hold something of ours, and among them those of exclusive models."""
        capacity = self._capacity()
        taken = frozenset(
            view.device
            for view in capacity.devices
            if free.get(view.device, 0) < view.capacity_bytes - view.foreign_bytes
        )
        exclusive = {
            device
            for name, model in capacity.models.items()
            if self._is_exclusive(name)
            for device, size in model.bytes_by_device.items()
            if size > 0
        }
        return taken, taken & exclusive


def _placed(want: Want, space: Space) -> Fit | Misfit:
    policy = PlacementPolicy(reserve_bytes=0, host_reserve_bytes=0)
    placement = search_any(want, space, policy)
    if placement is not None:
        return Fit(placement.by_device, placement.slots, placement)
    no: NoFit = refusal.explain(want, space, policy, search_any)
    near = "; ".join(choice.text for choice in no.choices)
    most = max(no.available_bytes.values(), default=0)
    reason = f"{no.reason}. It would fit with: {near}" if near else no.reason
    return Misfit(reason, max(no.needed_bytes - most, 0))
