"""The one retry policy: what a failure means, and whether, when and at what price to try again.

Sans-I/O. `turns` drives it: it tells `classify` what happened, asks `decide`, waits as told, and
starts the next attempt itself. No SDK, engine or HTTP client below retries on its own, so that an
outage multiplies requests by what is written here and by nothing else.

Three limits stand one behind the other:

- the deadline: no attempt starts that cannot finish;
- two retries (`[routing.retry]` says how many and how long), with full jitter over 0.25 s x 2^n up
  to 8 s, or `retry-after` where the server says it, up to a cap (a longer wait is not a retry but a
  fall-back);
- the retry budget of the provider: a bucket of 500 tokens from which a transient retry takes 14
  and a throttled one 5. A retry that succeeds gives most of its tokens back, and any first success
  gives one. In an outage the bucket empties after 35 retries, and from then on each step makes one
  attempt: a thousand waiting steps do not become three thousand requests to a provider that is
  down. The sizes are those the AWS SDKs settled on in 2026; they give all of it back, but then a
  provider that fails one call in five draws 1.24 requests for each call for ever. With 10 of 14
  back the steady state is 1.13, and the fall-back takes the rest. A step that has somewhere else
  to go draws on the last 42 tokens of a full bucket alone, always at the full price, so that the
  steady state holds from the first turn on; what lies below is for the steps that have not.

A retry is billed again (there is no idempotency key), so a retry after output began is refused
unless nothing of that output was shown.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from appliance.config.policy import RetryConfig

DEFAULT = RetryConfig()
BUDGET_TOKENS = 500
TRANSIENT_TOKENS = 14
THROTTLED_TOKENS = 5
SPARE_TOKENS = 3 * TRANSIENT_TOKENS
"""At the top of a full bucket: what steps may use that could go elsewhere instead."""
_REFUND_SHARE = 0.75


class Failure(StrEnum):
    """What went wrong, as far as trying again is concerned."""

    TRANSIENT = "transient"
    """500, 502, 503, 504, 408, 409, resets, timeouts, cut streams, malformed events."""
    OVERLOADED = "overloaded"
    """529: the provider's trouble."""
    THROTTLED = "throttled"
    """429: our rate."""
    SPENT = "spent"
    """402, a 429 that says a spending limit is reached, no credit left: time does not help."""
    DENIED = "denied"
    """401, 403: the key or the right."""
    OURS = "ours"
    """400, 404, 413, 422, a redirect: the request itself, or where it was sent."""

    @property
    def is_retryable(self) -> bool:
        return self in (Failure.TRANSIENT, Failure.OVERLOADED, Failure.THROTTLED)

    @property
    def counts_for_breaker(self) -> bool:
        return self not in (Failure.OURS, Failure.THROTTLED)

    @property
    def is_fatal(self) -> bool:
        """Only the operator can mend it: the breaker opens at once."""
        return self in (Failure.SPENT, Failure.DENIED)


_BY_STATUS = {
    400: Failure.OURS,
    401: Failure.DENIED,
    402: Failure.SPENT,
    403: Failure.DENIED,
    404: Failure.OURS,
    408: Failure.TRANSIENT,
    409: Failure.TRANSIENT,
    413: Failure.OURS,
    422: Failure.OURS,
    429: Failure.THROTTLED,
    529: Failure.OVERLOADED,
}

_BY_BODY_TYPE = {
    "invalid_request_error": Failure.OURS,
    "not_found_error": Failure.OURS,
    "request_too_large": Failure.OURS,
    "authentication_error": Failure.DENIED,
    "permission_error": Failure.DENIED,
    "billing_error": Failure.SPENT,
    "rate_limit_error": Failure.THROTTLED,
    "overloaded_error": Failure.OVERLOADED,
    "api_error": Failure.TRANSIENT,
    "timeout_error": Failure.TRANSIENT,
}

_SPENT_CODES = frozenset({"enforced_spend_limit_reached", "credit_balance_too_low"})


def classify(
    status: int | None, body_type: str | None = None, error_code: str | None = None
) -> Failure:
    """What an answer's status and error body say; a fault inside a 200 stream goes by its body
    type, and `status` None (no answer at all: refused, reset, timed out, cut) is transient."""
    if error_code in _SPENT_CODES:
        return Failure.SPENT
    if status is not None and 300 <= status < 400:
        return Failure.OURS
    if status is None or status < 400:
        return _BY_BODY_TYPE.get(body_type or "", Failure.TRANSIENT)
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    return Failure.TRANSIENT if status >= 500 else Failure.OURS


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """The bucket of one provider. Each function gives the next value."""

    tokens: int = BUDGET_TOKENS

    def take(self, amount: int) -> RetryBudget | None:
        """The bucket without them; None when it holds too few."""
        return replace(self, tokens=self.tokens - amount) if self.tokens >= amount else None

    def give(self, amount: int) -> RetryBudget:
        return replace(self, tokens=min(BUDGET_TOKENS, self.tokens + amount))


@dataclass(frozen=True, slots=True)
class Attempt:
    """The attempt that has just failed.

    `number` is 0 for the first. `retry_after_s` and `should_retry` are the server's own words
    (`retry-after`, `x-should-retry`), None where it said nothing. `was_shown` says that output of
    the attempt reached a client. `time_left_s` is what the deadline leaves now, `needs_s` how long
    an attempt is expected to take. `has_elsewhere` says that another provider, or this machine,
    could make the step.
    """

    failure: Failure
    number: int
    retry_after_s: float | None = None
    should_retry: bool | None = None
    was_shown: bool = False
    time_left_s: float | None = None
    needs_s: float = 0.0
    has_elsewhere: bool = False


class GiveUpReason(StrEnum):
    NOT_RETRYABLE = "not_retryable"
    SERVER_SAID_NO = "server_said_no"
    ALREADY_SHOWN = "already_shown"
    TOO_MANY = "too_many"
    WAIT_TOO_LONG = "wait_too_long"
    DEADLINE = "deadline"
    BUDGET = "budget"


@dataclass(frozen=True, slots=True)
class Retry:
    """Wait, then try the same target again. `budget` is the bucket after it; `refund` is what to
    `give` back if the retry succeeds (1 after a success at the first attempt)."""

    wait_s: float
    budget: RetryBudget
    refund: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No further attempt at this target; `can_fall_back` says whether another could do better."""

    reason: GiveUpReason
    can_fall_back: bool


def decide(
    attempt: Attempt, budget: RetryBudget, draw: float, limits: RetryConfig = DEFAULT
) -> Retry | GiveUp:
    """Whether to try the same target again. `draw` is uniform in [0, 1)."""
    if attempt.was_shown:
        return GiveUp(GiveUpReason.ALREADY_SHOWN, can_fall_back=False)
    if not attempt.failure.is_retryable:
        return GiveUp(GiveUpReason.NOT_RETRYABLE, attempt.failure is not Failure.OURS)
    if attempt.should_retry is False:
        return GiveUp(GiveUpReason.SERVER_SAID_NO, can_fall_back=True)
    if attempt.number + 1 >= limits.attempts_max:
        return GiveUp(GiveUpReason.TOO_MANY, can_fall_back=True)
    if attempt.retry_after_s is not None and attempt.retry_after_s > limits.retry_after_s_max:
        return GiveUp(GiveUpReason.WAIT_TOO_LONG, can_fall_back=True)
    wait_s = delay_s(attempt.number, attempt.retry_after_s, draw, limits)
    if attempt.time_left_s is not None and wait_s + attempt.needs_s > attempt.time_left_s:
        return GiveUp(GiveUpReason.DEADLINE, can_fall_back=True)
    is_cheap = attempt.failure is Failure.THROTTLED and not attempt.has_elsewhere
    tokens = THROTTLED_TOKENS if is_cheap else TRANSIENT_TOKENS
    left = budget.take(tokens)
    if left is None or (attempt.has_elsewhere and left.tokens < BUDGET_TOKENS - SPARE_TOKENS):
        return GiveUp(GiveUpReason.BUDGET, can_fall_back=True)
    return Retry(wait_s, left, int(tokens * _REFUND_SHARE))


def delay_s(
    number: int, retry_after_s: float | None, draw: float, limits: RetryConfig = DEFAULT
) -> float:
    """Full jitter over `backoff_ms` x 2^number up to `backoff_ms_max`. What the server asked for is
    kept as the least, with the jitter on top so that those told the same second do not come
    together."""
    jitter = draw * min(limits.backoff_ms * 2.0**number, limits.backoff_ms_max) / 1000
    return jitter if retry_after_s is None else retry_after_s + jitter
