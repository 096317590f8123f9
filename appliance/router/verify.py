"""*Did it?*: what a finished local answer shows of itself, and whether to keep it.

Hard evidence decides alone: a call that does not fit its schema, tests that failed, an answer cut
at its limit. Everything soft is in two numbers, what the learned score after generation
(`router.after`) expects of the local answer and of the cloud's; they are weighed as money, as in
`worth`: escalating must be expected to gain more than it costs. What the local model *did* is the
strongest signal known before tests, but it is also easily fooled, so it never outvotes a hard one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from appliance.router.types import Policy, Tuning

AGREEMENT_UNSURE = (0.35, 0.85)
"""P(right) between which a second local sample is worth its time on an idle GPU."""

SECOND_SHARE = 0.1
"""Of the value of a right answer, what a caller's wait for a second sample may cost."""


class EscalationReason(StrEnum):
    INVALID_CALL = "invalid_call"
    TESTS_FAILED = "tests_failed"
    CUT_SHORT = "cut_short"
    EMPTY = "empty"
    REFUSED = "refused"
    UNLIKELY = "unlikely"
    """Too small a probability of being right for what another answer costs."""


@dataclass(frozen=True, slots=True)
class AnswerFacts:
    """What is known of a local answer. None: not known or not applicable.

    `p_right` is what the score after generation expects of it, `cloud_right` of the best open cloud
    candidate, None when there is none. `was_cut` says that it ended at the local model's window or
    in a loop, not at the caller's own limit; `was_sampled_again` that a second sample was drawn.
    """

    p_right: float
    calls_valid: bool | None = None
    tests_passed: bool | None = None
    is_empty: bool = False
    was_refused: bool = False
    was_cut: bool = False
    was_sampled_again: bool = False
    cloud_right: float | None = None
    cloud_cost_micro_usd: int = 0
    cloud_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Keep:
    p_right: float


@dataclass(frozen=True, slots=True)
class Escalate:
    """Give the step to the cloud. Amounts in micro-dollars, for the journal and for `explain`."""

    reason: EscalationReason
    p_right: float
    gain_micro_usd: float = 0.0
    cost_micro_usd: float = 0.0


def judge(
    policy: Policy, answer: AnswerFacts, tuning: Tuning, *, is_interactive: bool = True
) -> Keep | Escalate:
    """Keep the local answer, or hand the step to the cloud if an open candidate is there.

    Whether the cloud *may* have it was settled by the gates: with no open cloud candidate
    (`cloud_right` None) the answer is kept, and the caller repairs or fails the step.
    """
    p_right = _settled(answer)
    if answer.cloud_right is None or policy is Policy.LOCAL_ONLY:
        return Keep(p_right)
    found = _hard_evidence(answer)
    if found is not None:
        return Escalate(found, p_right)
    if answer.tests_passed or p_right >= tuning.escalate_below:
        return Keep(p_right)
    gain = (answer.cloud_right - p_right) * tuning.value_micro_usd
    a_second = tuning.second_micro_usd if is_interactive else tuning.background_second_micro_usd
    cost = answer.cloud_cost_micro_usd * tuning.money_weight + answer.cloud_seconds * a_second
    if gain > cost + tuning.switch_margin * tuning.value_micro_usd:
        return Escalate(EscalationReason.UNLIKELY, p_right, gain, cost)
    return Keep(p_right)


def wants_second_sample(
    answer: AnswerFacts, tuning: Tuning, *, gpu_is_idle: bool, wait_s: float, is_interactive: bool
) -> bool:
    """Whether a second local sample would settle something at little cost: the answer could be
    handed up, is doubtful, was sampled once, the GPU has nothing else to do, and the caller's wait
    for it (`wait_s`, about as long as the first took) is worth little."""
    low, high = AGREEMENT_UNSURE
    a_second = tuning.second_micro_usd if is_interactive else tuning.background_second_micro_usd
    return (
        gpu_is_idle
        and answer.cloud_right is not None
        and not answer.was_sampled_again
        and _hard_evidence(answer) is None
        and answer.tests_passed is None
        and low < answer.p_right < high
        and wait_s * a_second <= SECOND_SHARE * tuning.value_micro_usd
    )


@dataclass(frozen=True, slots=True)
class Judgement:
    """One verdict with everything it depended on, for the journal. `expected` is P(right) before
    the answer; `because` by how much each family of signs moved it."""

    policy: Policy
    answer: AnswerFacts
    tuning: Tuning
    is_interactive: bool
    verdict: Keep | Escalate
    expected: float
    because: Mapping[str, float] = field(default_factory=dict)
    params_version: str = "none"

    def replayed(self) -> Keep | Escalate:
        """The verdict reached again from its inputs; equal to `verdict` if nothing changed."""
        return judge(self.policy, self.answer, self.tuning, is_interactive=self.is_interactive)


def _settled(answer: AnswerFacts) -> float:
    """P(right): tests settle it, else it is the score's."""
    if answer.tests_passed is None:
        return answer.p_right
    return 0.97 if answer.tests_passed else 0.05


def _hard_evidence(answer: AnswerFacts) -> EscalationReason | None:
    checks = (
        (answer.calls_valid is False, EscalationReason.INVALID_CALL),
        (answer.tests_passed is False, EscalationReason.TESTS_FAILED),
        (answer.was_cut, EscalationReason.CUT_SHORT),
        (answer.is_empty, EscalationReason.EMPTY),
        (answer.was_refused, EscalationReason.REFUSED),
    )
    return next((reason for is_so, reason in checks if is_so), None)
