"""When to stop knocking: one circuit breaker for each (provider, model).

A breaker is a frozen value; each function gives the next one. It opens at 5 failures in a row, or
when more than half of at least 5 outcomes within 60 s failed; stays open 5 s, doubling with each
failed probe to 30 s (`[routing.breaker]` sets these); then lets one probe through. Only failures
that say something of the provider count (`Failure.counts_for_breaker` in `retry`): our own bad
requests do not, and being throttled does not. Never one switch for all: a model that fails says
nothing of its siblings.

The last usable backend is never ejected: `route` may still try it while open, paced by the retry
budget, because refusing every step cannot be better than trying one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from appliance.config.policy import BreakerConfig
from appliance.router.types import BreakerState

DEFAULT = BreakerConfig()
MIN_OUTCOMES = 5
FAILED_SHARE = 0.5
WINDOW_S = 60.0
PROBE_PATIENCE_S = 120.0
"""A probe whose outcome never comes (its step was cancelled) is forgotten after this long."""
_MAX_KEPT = 256
"""Outcomes kept for the share; at more a minute the newest speak for the rest."""


@dataclass(frozen=True, slots=True)
class Breaker:
    """`outcomes` are (monotonic seconds, was it right), oldest first."""

    outcomes: tuple[tuple[float, bool], ...] = ()
    in_a_row: int = 0
    opened_s: float | None = None
    open_for_s: float = 0.0
    probe_s: float | None = None
    reason: str = ""

    def state(self, now_s: float) -> BreakerState:
        """Open, closed, or half-open: open time is over and no probe is under way."""
        if self.opened_s is None:
            return BreakerState.CLOSED
        if now_s < self.opened_s + self.open_for_s:
            return BreakerState.OPEN
        if self.probe_s is not None and now_s < self.probe_s + PROBE_PATIENCE_S:
            return BreakerState.OPEN
        return BreakerState.HALF_OPEN

    def opens_again_in_s(self, now_s: float) -> float:
        """Seconds until a probe may go; 0 when one may go now."""
        if self.opened_s is None:
            return 0.0
        return max(0.0, self.opened_s + self.open_for_s - now_s)


def started(breaker: Breaker, now_s: float) -> Breaker:
    """An attempt starts. In the half-open state it is the probe, and holds the others back."""
    if breaker.state(now_s) is BreakerState.HALF_OPEN:
        return replace(breaker, probe_s=now_s)
    return breaker


def ended(breaker: Breaker) -> Breaker:
    """An attempt came to nothing: throttled, our own fault, cancelled. It says nothing of the
    backend; but were it the probe, the next may go."""
    return replace(breaker, probe_s=None)


def succeeded(breaker: Breaker, now_s: float) -> Breaker:
    """An attempt came back well: whatever was, the backend works now."""
    return Breaker(outcomes=() if breaker.opened_s is not None else _kept(breaker, now_s, True))


def failed(
    breaker: Breaker,
    now_s: float,
    reason: str,
    *,
    is_fatal: bool = False,
    limits: BreakerConfig = DEFAULT,
) -> Breaker:
    """An attempt failed in a way that counts. `is_fatal` (401, 402, 403) opens it at once."""
    outcomes = _kept(breaker, now_s, False)
    row = breaker.in_a_row + 1
    if breaker.opened_s is not None:
        if breaker.state(now_s) is BreakerState.OPEN and breaker.probe_s is None:
            return breaker  # a straggler from before it opened says nothing new
        longer = min(breaker.open_for_s * 2, limits.open_s_max)
        return Breaker(outcomes, row, now_s, longer, None, reason)
    bad = sum(not good for _, good in outcomes)
    too_many = len(outcomes) >= MIN_OUTCOMES and bad > FAILED_SHARE * len(outcomes)
    if is_fatal:
        return Breaker(outcomes, row, now_s, limits.open_s_max, None, reason)
    if row >= limits.failures or too_many:
        return Breaker(outcomes, row, now_s, limits.open_s, None, reason)
    return replace(breaker, outcomes=outcomes, in_a_row=row, reason=reason)


def _kept(breaker: Breaker, now_s: float, was_right: bool) -> tuple[tuple[float, bool], ...]:
    recent = [each for each in breaker.outcomes if each[0] > now_s - WINDOW_S]
    return (*recent[-(_MAX_KEPT - 1) :], (now_s, was_right))
