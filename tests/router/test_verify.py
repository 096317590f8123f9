"""Did it: a finished local answer is kept or handed over, and only for a reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.router.types import Policy, Tuning
from appliance.router.verify import (
    AnswerFacts,
    Escalate,
    EscalationReason,
    Keep,
    judge,
    wants_second_sample,
)

GOOD = AnswerFacts(p_right=0.9, cloud_right=0.95, cloud_cost_micro_usd=8_000, cloud_seconds=3.0)


def test_a_likely_answer_is_kept() -> None:
    assert judge(Policy.BALANCED, GOOD, Tuning()) == Keep(0.9)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"calls_valid": False}, EscalationReason.INVALID_CALL),
        ({"tests_passed": False}, EscalationReason.TESTS_FAILED),
        ({"was_cut": True}, EscalationReason.CUT_SHORT),
        ({"is_empty": True}, EscalationReason.EMPTY),
        ({"was_refused": True}, EscalationReason.REFUSED),
        ({"p_right": 0.3}, EscalationReason.UNLIKELY),
    ],
)
def test_each_sign_of_failure_escalates(
    change: dict[str, object], reason: EscalationReason
) -> None:
    verdict = judge(Policy.BALANCED, replace(GOOD, **change), Tuning())
    assert isinstance(verdict, Escalate)
    assert verdict.reason is reason


def test_passed_tests_outweigh_a_pessimistic_score() -> None:
    assert isinstance(
        judge(Policy.BALANCED, replace(GOOD, p_right=0.1, tests_passed=True), Tuning()), Keep
    )


def test_an_answer_is_kept_when_another_costs_more_than_it_would_gain() -> None:
    dear = replace(GOOD, p_right=0.5, cloud_cost_micro_usd=900_000)
    assert isinstance(judge(Policy.BALANCED, dear, Tuning()), Keep)


def test_a_second_sample_is_drawn_only_when_unsure_and_free() -> None:
    unsure = replace(GOOD, p_right=0.6)
    assert wants_second_sample(unsure, gpu_is_idle=True)
    assert not wants_second_sample(unsure, gpu_is_idle=False)
    assert not wants_second_sample(GOOD, gpu_is_idle=True)
    assert not wants_second_sample(replace(unsure, agreement=1.0), gpu_is_idle=True)


def test_disagreement_and_low_log_probability_lower_the_guess() -> None:
    def kept(**change: float) -> float:
        facts = AnswerFacts(agreement=1.0, mean_logprob=-0.1)
        return judge(Policy.BALANCED, replace(facts, **change), Tuning()).p_right

    assert kept() > kept(agreement=0.0)
    assert kept() > kept(mean_logprob=-1.5)


@given(
    st.builds(
        AnswerFacts,
        calls_valid=st.none() | st.booleans(),
        tests_passed=st.none() | st.booleans(),
        is_empty=st.booleans(),
        was_cut=st.booleans(),
        p_right=st.none() | st.floats(0, 1),
        cloud_right=st.none() | st.floats(0, 1),
    ),
    st.sampled_from(Policy),
)
def test_nothing_escalates_without_an_open_cloud_candidate(
    answer: AnswerFacts, policy: Policy
) -> None:
    verdict = judge(policy, answer, Tuning())
    if answer.cloud_right is None or policy is Policy.LOCAL_ONLY:
        assert isinstance(verdict, Keep)
