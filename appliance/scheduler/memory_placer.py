"""Between the scheduler's question (does this model fit these free bytes?) and the GPU room.

It is asked dozens of times in a decision, and mostly the answer is no, or was given a moment ago.
So what is known of a model's reach is asked first, and the answers that were searched for are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from appliance.gpu import refusal
from appliance.gpu.placement import search_any
from appliance.gpu.reach import Reach
from appliance.gpu.space import Space
from appliance.gpu.types import HOST
from appliance.gpu.wants import PlacementPolicy, Want
from appliance.scheduler.values import Fit, Holdings, Misfit, ModelSpec

ANSWERS_KEPT = 256
"""Answers remembered of each model: the core asks about the same free bytes again and again."""
WANTS_KEPT = 512
"""Models with the least that is asked of their places, of whom answers are remembered."""

_POLICY = PlacementPolicy(reserve_bytes=0, host_reserve_bytes=0)
"""Reserves are taken off before: the core counts without them."""

_NONE: frozenset[str] = frozenset()


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
        self._exclusive = _NONE
        self._is_anyone_exclusive = False
        self._asked: dict[tuple[str, float], _Asked] = {}

    def place(self, spec: ModelSpec, free: Mapping[str, int], least: float = 0.0) -> Fit | Misfit:
        asked = self._of(spec, least)
        taken, closed = self._held(free)
        key = (*free, *free.values(), taken, closed)
        answer = asked.answers.get(key)
        if answer is None:
            if len(asked.answers) >= ANSWERS_KEPT:
                asked.answers.clear()
            answer = asked.answers[key] = _placed(asked, free, taken, closed)
        return answer

    def fits(self, spec: ModelSpec, free: Mapping[str, int], least: float = 0.0) -> bool:
        asked = self._of(spec, least)
        _, closed = self._held(free)
        known = None if closed else asked.reach.fits(free)
        return isinstance(self.place(spec, free, least), Fit) if known is None else known

    def _of(self, spec: ModelSpec, least: float) -> _Asked:
        asked = self._asked.get((spec.name, least))
        if asked is None or asked.demand is not spec.demand:
            assert isinstance(spec.demand, Want), "models with memory carry a Want"
            if len(self._asked) >= WANTS_KEPT:
                self._asked.clear()
            asked = self._asked[spec.name, least] = _Asked(spec.demand, least)
            self._is_anyone_exclusive |= spec.demand.exclusive
        return asked

    def _held(self, free: Mapping[str, int]) -> tuple[frozenset[str], frozenset[str]]:
        """Cards that hold something of ours, and among them those of exclusive models; none where
        nobody was ever placed who is exclusive."""
        if not self._is_anyone_exclusive:
            return _NONE, _NONE
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


class _Asked:
    """A model as it is wanted now, with at least a share of its layers on cards."""

    def __init__(self, demand: Want, least: float) -> None:
        self.demand = demand
        self.want = replace(demand, least_on_cards=least)
        self.reach = Reach(self.want)
        self.answers: dict[tuple[object, ...], Fit | Misfit] = {}


def _placed(
    asked: _Asked, free: Mapping[str, int], taken: frozenset[str], closed: frozenset[str]
) -> Fit | Misfit:
    want, placement = asked.want, None
    if closed or asked.reach.may_fit(free):
        placement = search_any(want, _space(free, taken, closed), _POLICY)
    if placement is None:
        return Misfit(partial(_why_not, want, free, taken, closed))
    is_less = (
        placement.slots < want.slots
        or placement.context_window < want.context_window
        or placement.kv_type is not want.kv_types[0]
    )
    return Fit(placement.by_device, placement.slots, placement, placement.on_cards, is_less)


def _space(free: Mapping[str, int], taken: frozenset[str], closed: frozenset[str]) -> Space:
    return Space(free, tuple([uuid for uuid in free if uuid != HOST]), taken, closed)


def _why_not(
    want: Want, free: Mapping[str, int], taken: frozenset[str], closed: frozenset[str]
) -> str:
    no = refusal.explain(want, _space(free, taken, closed), _POLICY, search_any)
    near = "; ".join(choice.text for choice in no.choices)
    return f"{no.reason}. It would fit with: {near}" if near else no.reason
