"""One retry policy: what is tried again, how long it waits, how little an outage multiplies."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config.policy import RetryConfig
from appliance.router.retry import (
    BUDGET_TOKENS,
    Attempt,
    Failure,
    GiveUp,
    GiveUpReason,
    Retry,
    RetryBudget,
    classify,
    decide,
    delay_s,
)

FIRST = Attempt(Failure.TRANSIENT, 0)


@pytest.mark.parametrize(
    ("status", "body_type", "code", "failure"),
    [
        (429, "rate_limit_error", None, Failure.THROTTLED),
        (429, "rate_limit_error", "enforced_spend_limit_reached", Failure.SPENT),
        (529, "overloaded_error", None, Failure.OVERLOADED),
        (500, "api_error", None, Failure.TRANSIENT),
        (504, "timeout_error", None, Failure.TRANSIENT),
        (418, None, None, Failure.OURS),
        (400, "invalid_request_error", None, Failure.OURS),
        (401, "authentication_error", None, Failure.DENIED),
        (200, "overloaded_error", None, Failure.OVERLOADED),
        (None, None, None, Failure.TRANSIENT),
    ],
)
def test_every_signal_has_one_meaning(
    status: int | None, body_type: str | None, code: str | None, failure: Failure
) -> None:
    assert classify(status, body_type, code) is failure


def test_our_own_bad_request_is_neither_retried_nor_sent_elsewhere() -> None:
    given_up = decide(replace(FIRST, failure=Failure.OURS), RetryBudget(), 0.5)
    assert given_up == GiveUp(GiveUpReason.NOT_RETRYABLE, can_fall_back=False)
    assert not Failure.OURS.counts_for_breaker


def test_what_was_shown_is_never_generated_again() -> None:
    given_up = decide(replace(FIRST, was_shown=True), RetryBudget(), 0.5)
    assert given_up == GiveUp(GiveUpReason.ALREADY_SHOWN, can_fall_back=False)


def test_the_server_is_obeyed() -> None:
    refused = decide(replace(FIRST, should_retry=False), RetryBudget(), 0.5)
    assert isinstance(refused, GiveUp)
    asked = decide(replace(FIRST, failure=Failure.THROTTLED, retry_after_s=3.0), RetryBudget(), 0.5)
    assert isinstance(asked, Retry)
    assert 3.0 <= asked.wait_s <= 3.25
    assert asked.refund == 3


def test_a_long_retry_after_is_a_reason_to_go_elsewhere() -> None:
    long = replace(
        FIRST, failure=Failure.THROTTLED, retry_after_s=RetryConfig().retry_after_s_max + 1
    )
    assert decide(long, RetryBudget(), 0.5) == GiveUp(GiveUpReason.WAIT_TOO_LONG, True)


def test_no_attempt_starts_that_cannot_finish() -> None:
    late = replace(FIRST, time_left_s=2.0, needs_s=3.0)
    assert decide(late, RetryBudget(), 0.0) == GiveUp(GiveUpReason.DEADLINE, True)


def test_two_retries_and_no_more() -> None:
    assert isinstance(decide(replace(FIRST, number=1), RetryBudget(), 0.5), Retry)
    assert decide(replace(FIRST, number=2), RetryBudget(), 0.5) == GiveUp(
        GiveUpReason.TOO_MANY, True
    )


def test_an_outage_empties_the_budget_and_then_each_step_tries_once() -> None:
    budget, requests = RetryBudget(), 0
    for _ in range(1000):
        attempt = FIRST
        while True:
            requests += 1
            verdict = decide(attempt, budget, 0.5)
            if isinstance(verdict, GiveUp):
                break
            budget = verdict.budget
            attempt = replace(attempt, number=attempt.number + 1)
    assert requests == 1000 + BUDGET_TOKENS // 14


def test_with_a_fifth_of_calls_faulted_extra_requests_stay_under_a_fifth() -> None:
    draw = random.Random(7)
    budget, requests, right = RetryBudget(), 0, 0
    for _ in range(10_000):
        attempt, given_back = FIRST, 1
        while True:
            requests += 1
            if draw.random() >= 0.2:
                budget = budget.give(given_back)
                right += 1
                break
            verdict = decide(attempt, budget, draw.random())
            if isinstance(verdict, GiveUp):
                break
            budget, given_back = verdict.budget, verdict.refund
            attempt = replace(attempt, number=attempt.number + 1)
    assert requests <= 12_000
    assert right > 8_500


@pytest.mark.parametrize("failure", [Failure.TRANSIENT, Failure.THROTTLED])
@pytest.mark.parametrize("turns", [100, 300, 1_000])
def test_steps_that_can_go_elsewhere_keep_the_bound_from_the_first_turns_on(
    turns: int, failure: Failure
) -> None:
    first = replace(FIRST, failure=failure, has_elsewhere=True)
    ratios = []
    for seed in range(40):
        draw, budget, requests = random.Random(seed), RetryBudget(), 0
        for _ in range(turns):
            attempt, given_back = first, 1
            while True:
                requests += 1
                if draw.random() >= 0.2:
                    budget = budget.give(given_back)
                    break
                verdict = decide(attempt, budget, draw.random())
                if isinstance(verdict, GiveUp):
                    break
                budget, given_back = verdict.budget, verdict.refund
                attempt = replace(attempt, number=attempt.number + 1)
        ratios.append(requests / turns)
    assert sum(ratios) / len(ratios) <= 1.18
    assert sorted(ratios)[-3] <= 1.21


def test_steps_that_can_go_elsewhere_leave_the_bucket_to_those_that_cannot() -> None:
    budget, retries = RetryBudget(), 0
    while isinstance(verdict := decide(replace(FIRST, has_elsewhere=True), budget, 0.5), Retry):
        budget, retries = verdict.budget, retries + 1
    assert verdict == GiveUp(GiveUpReason.BUDGET, can_fall_back=True)
    assert retries == 3, "one fault at the very start is still retried"
    assert isinstance(decide(FIRST, budget, 0.5), Retry)


@given(st.integers(0, 20), st.floats(0, 1, exclude_max=True), st.none() | st.floats(0, 20))
def test_the_wait_is_bounded_and_never_shorter_than_asked(
    number: int, draw: float, retry_after_s: float | None
) -> None:
    wait_s = delay_s(number, retry_after_s, draw)
    assert (retry_after_s or 0.0) <= wait_s <= (retry_after_s or 0.0) + 8.0


@given(st.integers(0, 600), st.integers(0, 600))
def test_a_bucket_never_overflows_and_never_goes_below_empty(take: int, give: int) -> None:
    left = RetryBudget().take(take)
    assert (left is None) == (take > BUDGET_TOKENS)
    if left is not None:
        assert 0 <= left.give(give).tokens <= BUDGET_TOKENS


def test_the_configuration_says_how_often_and_how_long() -> None:
    limits = RetryConfig(attempts_max=5, backoff_ms=100, backoff_ms_max=150, retry_after_s_max=60)
    assert isinstance(decide(replace(FIRST, number=3), RetryBudget(), 0.5, limits), Retry)
    given_up = decide(replace(FIRST, number=4), RetryBudget(), 0.5, limits)
    assert given_up == GiveUp(GiveUpReason.TOO_MANY, can_fall_back=True)
    late = decide(replace(FIRST, number=3), RetryBudget(), 1.0, limits)
    assert isinstance(late, Retry) and late.wait_s == pytest.approx(0.15)
    asked = replace(FIRST, failure=Failure.THROTTLED, retry_after_s=45.0)
    assert isinstance(decide(asked, RetryBudget(), 0.5, limits), Retry)
    assert isinstance(decide(asked, RetryBudget(), 0.5), GiveUp)
