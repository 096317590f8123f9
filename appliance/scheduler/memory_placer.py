"""Between the scheduler's question (does this model fit these free bytes?) and the GPU room."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from appliance.gpu import refusal
from appliance.gpu.placement import search_any
from appliance.gpu.space import Space
from appliance.gpu.types import HOST, PlacementPolicy, Want
from appliance.scheduler.values import Fit, Holdings, Misfit, ModelSpec

ANSWERS_KEPT = 4096
"""Placements remembered: the core asks about the same free bytes again and again."""

_POLICY = PlacementPolicy(reserve_bytes=0, host_reserve_bytes=0)
"""Reserves are taken off before: the core counts without them."""


class MemoryPlacer:
    """`scheduler.values.Placer` on the GPU room's placement.

    From `holdings` it is seen whether a card holds something of ours: an exclusive model takes none
    of those, and nobody else a card of a loaded exclusive one. A card that would be empty after an
    eviction counts as empty.
    """

    def __init__(
        self, holdings: Callable[[], Holdings], is_exclusive: Callable[[str], bool]
    ) -> None:
        self._holdings = holdings
        self._is_exclusive = is_exclusive
        self._known: Holdings | None = None
        self._exclusive: frozenset[str] = frozenset()
        self._answers: dict[tuple[object, ...], Fit | Misfit] = {}

    def place(self, spec: ModelSpec, free: Mapping[str, int], least: float = 0.0) -> Fit | Misfit:
        want = spec.demand
        assert isinstance(want, Want), "models with memory carry a Want"
        taken, closed = self._held(free)
        key = (want, least, *free.items(), taken, closed)
        answer = self._answers.get(key)
        if answer is None:
            if len(self._answers) >= ANSWERS_KEPT:
                self._answers.clear()
            cards = tuple(uuid for uuid in free if uuid != HOST)
            answer = _placed(
                replace(want, least_on_cards=least), Space(dict(free), cards, taken, closed)
            )
            self._answers[key] = answer
        return answer

    def _held(self, free: Mapping[str, int]) -> tuple[frozenset[str], frozenset[str]]:
        """Cards that hold something of ours, and among them those of exclusive models."""
        now = self._holdings()
        if now is not self._known:
            self._known = now
            self._exclusive = frozenset(
                device
                for name, held in now.bytes_by_model.items()
                if self._is_exclusive(name)
                for device, size in held.items()
                if size > 0
            )
        taken = frozenset(
            device for device, budget in now.budgets.items() if free.get(device, 0) < budget
        )
        return taken, taken & self._exclusive


def _placed(want: Want, space: Space) -> Fit | Misfit:
    placement = search_any(want, space, _POLICY)
    if placement is None:
        return Misfit(partial(_why_not, want, space))
    is_less = (
        placement.slots < want.slots
        or placement.context_window < want.context_window
        or placement.kv_type is not want.kv_types[0]
    )
    return Fit(placement.by_device, placement.slots, placement, placement.on_cards, is_less)


def _why_not(want: Want, space: Space) -> str:
    no = refusal.explain(want, space, _POLICY, search_any)
    near = "; ".join(choice.text for choice in no.choices)
    return f"{no.reason}. It would fit with: {near}" if near else no.reason
