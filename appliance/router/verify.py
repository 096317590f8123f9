"""*Did it?*: what a finished local answer shows of itself, and whether to keep it.

Hard evidence decides alone: a call that does not fit its schema, tests that failed, an answer cut
at its limit. Soft evidence (log-probability, agreement of two samples, the score after
generation) is weighed as money, as in `worth`: escalating must be expected to gain more than it
costs. What the local model *did* is the strongest signal known before tests (on public data
agreement alone orders wrong answers better than any router that reads the question), but it is
also easily fooled, so one soft signal never outvotes a hard one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from appliance.router.types import Policy, Tuning

AGREEMENT_UNSURE = (0.35, 0.85)
"""P(right) between which a second local sample is worth its time on an idle GPU."""

_USUALLY_RIGHT = 0.7


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
    """What is known of a local answer. None: not known, not measured, not applicable.

    `p_right` is what the score expected of this model before it answered; `agreement` the share of
    further local samples that gave the same answer; `was_cut` that it ended at the local model's
    window or in a loop, not at the caller's own limit. `cloud_*` describe the best open cloud
    candidate, None when there is none.
    """

    calls_valid: bool | None = None
    tests_passed: bool | None = None
    is_empty: bool = False
    was_refused: bool = False
    was_cut: bool = False
    mean_logprob: float | None = None
    min_logprob: float | None = None
    agreement: float | None = None
    output_chars: int = 0
    p_right: float | None = None
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
    p_right = likelihood(answer)
    if answer.cloud_right is None or policy is Policy.LOCAL_ONLY:
        return Keep(p_right)
    found = _hard_evidence(answer)
    if found is not None:
        return Escalate(found, p_right)
    if answer.tests_passed:
        return Keep(p_right)
    gain = (answer.cloud_right - p_right) * tuning.value_micro_usd
    a_second = tuning.second_micro_usd if is_interactive else tuning.background_second_micro_usd
    cost = answer.cloud_cost_micro_usd * tuning.money_weight + answer.cloud_seconds * a_second
    if gain > cost + tuning.switch_margin * tuning.value_micro_usd:
        return Escalate(EscalationReason.UNLIKELY, p_right, gain, cost)
    return Keep(p_right)


def wants_second_sample(answer: AnswerFacts, *, gpu_is_idle: bool) -> bool:
    """Whether a second local sample would settle something: unsure, unmeasured, and for free."""
    low, high = AGREEMENT_UNSURE
    return gpu_is_idle and answer.agreement is None and low < likelihood(answer) < high


def likelihood(answer: AnswerFacts) -> float:
    """P(right): what was expected before the answer, moved in log-odds by what the answer shows.

    Tests settle it. Agreement moves it most: on public outcomes full agreement of two or three
    other small models adds 1.7 to 3.2 and none takes 1.2 to 4.2 away (multiple choice at the low
    end, maths at the high); samples of one model agree too easily, so the low end is used.
    """
    if answer.tests_passed is not None:
        return 0.97 if answer.tests_passed else 0.05
    expected = _USUALLY_RIGHT if answer.p_right is None else answer.p_right
    if answer.mean_logprob is None and answer.agreement is None:
        return expected
    expected = min(0.98, max(0.02, expected))
    odds = math.log(expected / (1.0 - expected))
    if answer.mean_logprob is not None:
        odds += 1.5 * max(-1.5, min(0.5, answer.mean_logprob + 0.5))
    if answer.agreement is not None:
        odds += 3.0 * answer.agreement - 1.3
    return min(0.98, max(0.02, 1.0 / (1.0 + math.exp(-odds))))


def _hard_evidence(answer: AnswerFacts) -> EscalationReason | None:
    checks = (
        (answer.calls_valid is False, EscalationReason.INVALID_CALL),
        (answer.tests_passed is False, EscalationReason.TESTS_FAILED),
        (answer.was_cut, EscalationReason.CUT_SHORT),
        (answer.is_empty, EscalationReason.EMPTY),
        (answer.was_refused, EscalationReason.REFUSED),
    )
    return next((reason for is_so, reason in checks if is_so), None)
