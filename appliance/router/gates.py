"""*May it?* and *can it?*: the gates before any weighing, each a claim about one target.

Gates are absolute. A score, a price or a full queue never reopens one; only the last usable
target with an open breaker may be tried (see `route`). The privacy gate stands here so that a
route is never proposed that `egress` would refuse; egress checks the bytes again.
"""

from __future__ import annotations

from appliance.router.types import (
    BreakerState,
    Place,
    Policy,
    Rejection,
    StepFacts,
    TargetFacts,
)
from appliance.router.worth import cost_micro_usd, seconds
from appliance.types import Label

MIN_OUTPUT_TOKENS = 256
"""Room for an answer that a window must leave; a shorter one is not worth starting."""


def may_it(step: StepFacts, target: TargetFacts) -> tuple[Rejection, ...]:
    """Permission: every reason why this step may not go there; empty when it may."""
    if target.place is Place.LOCAL:
        return (Rejection.POLICY,) if step.policy is Policy.CLOUD_ONLY else ()
    found: list[Rejection] = []
    if step.policy is Policy.LOCAL_ONLY:
        found.append(Rejection.POLICY)
    if step.air_gap:
        found.append(Rejection.AIR_GAP)
    if step.label is Label.PRIVATE or step.label.rank > target.max_label.rank:
        found.append(Rejection.LABEL)
    if not target.permitted:
        found.append(Rejection.NOT_PERMITTED)
    return tuple(found)


def can_it(step: StepFacts, target: TargetFacts) -> tuple[Rejection, ...]:
    """Ability, now: every reason why this target cannot do the step; empty when it can."""
    output = min(step.max_output_tokens, MIN_OUTPUT_TOKENS)
    tokens = step.prompt_tokens + step.max_output_tokens
    budget, rate = target.budget_left_micro_usd, target.rate_limit_tokens_left
    late = step.time_left_s is not None and seconds(step, target) > step.time_left_s
    checks = (
        (not target.fits, Rejection.NO_FIT),
        (step.prompt_tokens + output > target.context_window, Rejection.WINDOW),
        (step.needs_tools and not target.supports_tools, Rejection.TOOLS),
        (step.needs_images and not target.supports_images, Rejection.IMAGES),
        (budget is not None and most_micro_usd(step, target) > budget, Rejection.BUDGET),
        (rate is not None and tokens > rate, Rejection.RATE_LIMIT),
        (target.breaker is BreakerState.OPEN, Rejection.BREAKER),
        (late, Rejection.DEADLINE),
    )
    return tuple(rejection for is_out, rejection in checks if is_out)


def most_micro_usd(step: StepFacts, target: TargetFacts) -> int:
    """The most the step can cost there: nothing read from cache, every output token used."""
    return cost_micro_usd(step, target, cached=0, output_tokens=step.max_output_tokens)
