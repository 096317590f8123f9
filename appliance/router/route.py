"""One step, some targets, a score and a draw in; one `Route` or the reasons for none out.

Pure and total: the same inputs give the same route, so a journalled decision replays exactly. The
draw (uniform in 0..1) is the only chance, and comes in as an argument.

Order of settlement, first that applies:

1. Gates: *may it*, *can it*. What they shut stays shut.
2. Nothing open: if some target is out for its breaker alone, the best of those is tried, since the
   last usable backend is never ejected; else `NoRoute`.
3. Escalated: a turn that was moved up after a bad answer stays in the cloud while it can.
4. Sticky: inside a tool loop the model that runs it keeps it, unless it is failing, or waits so
   long that another is worth more than a switch inside a loop costs.
5. The greatest worth; rarely, at a draw below `Tuning.explore`, another open target instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from appliance.router.gates import can_it, may_it
from appliance.router.types import (
    Candidate,
    NoRoute,
    Place,
    Policy,
    Reason,
    Rejection,
    Route,
    Score,
    StepFacts,
    TargetFacts,
    Tuning,
)
from appliance.router.worth import weigh
from appliance.types import Label

LOOP_SWITCH_FACTOR = 5.0
"""A switch inside a tool loop must clear this many switch margins: it changes the style of calls
half-way and re-reads every tool result."""

LOOP_FAILURES = 2
"""After this many failures in a row a tool loop is no longer a reason to stay."""

_EXPLORING = (Policy.BALANCED, Policy.CLOUD_FIRST)
"""Policies under which chance may spend money: the others state a wish that chance would break."""

_WANTED = {Policy.LOCAL_FIRST: Place.LOCAL, Policy.CLOUD_FIRST: Place.CLOUD}


def route(
    step: StepFacts,
    targets: Sequence[TargetFacts],
    score: Score,
    draw: float,
    tuning: Tuning | None = None,
) -> Route | NoRoute:
    """Decide where the step runs.

    `targets` may come in any order; those outside `step.chain` are not considered, and between
    equals the earlier in the chain wins. `draw` is uniform in [0, 1).
    """
    tuning = tuning or Tuning()
    order = {name: rank for rank, name in enumerate(step.chain)}
    known = sorted((t for t in targets if t.name in order), key=lambda t: order[t.name])
    candidates = tuple(_candidate(step, target, score, tuning) for target in known)
    open_ones = [each for each in candidates if each.is_open]
    if not open_ones:
        return _last_usable(candidates, score)
    target, reasons, propensity = _settle(step, candidates, open_ones, draw, tuning)
    return Route(
        target=target.target,
        place=target.place,
        candidates=candidates,
        reasons=reasons,
        propensity=propensity,
        params_version=score.params_version,
    )


def _candidate(step: StepFacts, target: TargetFacts, score: Score, tuning: Tuning) -> Candidate:
    weighed = weigh(step, target, score, tuning)
    rejections = may_it(step, target) + can_it(step, target)
    return replace(weighed, rejections=rejections, note=target.shut_note) if rejections else weighed


def _last_usable(candidates: tuple[Candidate, ...], score: Score) -> Route | NoRoute:
    shut_by_breaker = [each for each in candidates if each.rejections == (Rejection.BREAKER,)]
    if not shut_by_breaker:
        return NoRoute(candidates)
    best = _best(shut_by_breaker)
    return Route(
        best.target, best.place, candidates, (Reason.LAST_USABLE,), 1.0, score.params_version
    )


def _settle(
    step: StepFacts,
    candidates: tuple[Candidate, ...],
    open_ones: list[Candidate],
    draw: float,
    tuning: Tuning,
) -> tuple[Candidate, tuple[Reason, ...], float]:
    best = _best(open_ones)
    if len(open_ones) == 1:
        wanted = _WANTED.get(step.policy, candidates[0].place)
        why = Reason.ONLY_ONE if best.place is wanted else Reason.FALL_BACK
        return best, (why,), 1.0
    if step.escalated:
        cloud = [each for each in open_ones if each.place is Place.CLOUD]
        if cloud:
            return _best(cloud), (Reason.ESCALATED,), 1.0
    if step.in_tool_loop:
        held = next((each for each in open_ones if each.target == step.history_target), None)
        if held is not None:
            return _in_loop(step, held, best, tuning)
    others = [each for each in open_ones if each is not best]
    explore = _explore_share(step, tuning)
    if draw < explore:
        chosen = others[int(draw / explore * len(others))]
        return chosen, (Reason.EXPLORED,), explore / len(others)
    return best, _why(step, best, open_ones), 1.0 - explore


def _in_loop(
    step: StepFacts, held: Candidate, best: Candidate, tuning: Tuning
) -> tuple[Candidate, tuple[Reason, ...], float]:
    margin = LOOP_SWITCH_FACTOR * tuning.switch_margin * tuning.value_micro_usd
    failing = step.failures_in_a_row >= LOOP_FAILURES and best.p_right > held.p_right
    if best is held or not (failing or best.worth > held.worth + margin):
        return held, (Reason.STICKY,), 1.0
    return best, _why(step, best, [held, best]), 1.0


def _why(step: StepFacts, best: Candidate, open_ones: list[Candidate]) -> tuple[Reason, ...]:
    """Best worth; and, where that is so, that only its delay cost a local model the step, or that
    nothing is open where the policy would rather have gone."""
    reasons = [Reason.BEST_WORTH]
    undelayed = max(open_ones, key=lambda each: each.worth + each.delay_micro_usd)
    if best.place is Place.CLOUD and undelayed.place is Place.LOCAL:
        reasons.append(Reason.SPILL_OVER)
    wanted = _WANTED.get(step.policy)
    if wanted is not None and all(each.place is not wanted for each in open_ones):
        reasons.append(Reason.FALL_BACK)
    return tuple(reasons)


def _explore_share(step: StepFacts, tuning: Tuning) -> float:
    allowed = step.policy in _EXPLORING and step.label is not Label.PRIVATE
    return tuning.explore if allowed and step.failures_in_a_row == 0 else 0.0


def _best(candidates: Sequence[Candidate]) -> Candidate:
    """The first of the greatest worth: `max` keeps the earlier of equals, which is chain order."""
    return max(candidates, key=lambda each: each.worth)
