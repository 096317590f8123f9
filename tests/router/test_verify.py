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


def test_an_answer_as_likely_as_the_owner_asks_is_kept_whatever_the_cloud_would_gain() -> None:
    doubtful = replace(GOOD, p_right=0.4, cloud_cost_micro_usd=0, cloud_seconds=0.0)
    assert isinstance(judge(Policy.BALANCED, doubtful, Tuning(escalate_below=0.5)), Escalate)
    assert judge(Policy.BALANCED, doubtful, Tuning(escalate_below=0.4)) == Keep(0.4)
    broken = replace(doubtful, calls_valid=False)
    assert isinstance(judge(Policy.BALANCED, broken, Tuning(escalate_below=0.4)), Escalate)


UNSURE = replace(GOOD, p_right=0.6)


def wants(answer: AnswerFacts, *, idle: bool = True, wait_s: float = 2.0) -> bool:
    return wants_second_sample(
        answer, Tuning(), gpu_is_idle=idle, wait_s=wait_s, is_interactive=True
    )


def test_a_second_sample_is_drawn_when_the_answer_is_doubtful_and_nothing_else_waits() -> None:
    assert wants(UNSURE)
    assert not wants(UNSURE, idle=False)


@pytest.mark.parametrize(
    "change",
    [{"p_right": 0.95}, {"was_sampled_again": True}, {"cloud_right": None}, {"is_empty": True}],
)
def test_a_second_sample_is_not_drawn_where_it_would_settle_nothing(
    change: dict[str, object],
) -> None:
    assert not wants(replace(UNSURE, **change))


def test_a_second_sample_is_not_worth_a_long_wait() -> None:
    assert not wants(UNSURE, wait_s=60.0)


@given(
    st.builds(
        AnswerFacts,
        p_right=st.floats(0, 1),
        calls_valid=st.none() | st.booleans(),
        tests_passed=st.none() | st.booleans(),
        is_empty=st.booleans(),
        was_cut=st.booleans(),
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
