"""When to stop knocking: one circuit breaker for each (provider, model).

A breaker is a frozen value; each function gives the next one. It opens at 5 failures in a row, or
when more than half of at least 10 calls within 60 s failed; stays open 5 s, doubling with each
failed probe to 30 s (`[routing.breaker]` sets these); then lets one probe through. Only failures
that say something of the provider count (`Failure.counts_for_breaker` in `retry`): our own bad
requests do not, and being throttled does not. Never one switch for all: a model that fails says
nothing of its siblings.

*In a row* is the order in which calls were made, and a call that is still under way ends a row.
By the order in which they end, every busy provider would seem to fail in rows, since a refusal
comes sooner than an answer: of sixteen calls made at once with one in five failing, five or more
fail in one case of five, and told one after the other they were once taken for an outage.

The last usable backend is never ejected: `route` may still try it while open, paced by the retry
budget, because refusing every step cannot be better than trying one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from appliance.config.policy import BreakerConfig
from appliance.router.types import BreakerState

DEFAULT = BreakerConfig()
MIN_CALLS = 10
"""For the share. Of the first five calls to a provider that fails one in five, three fail in one
start of seventeen; of the first ten six do in one of 150."""
FAILED_SHARE = 0.5
WINDOW_S = 60.0
PROBE_PATIENCE_S = 120.0
"""A probe whose outcome never comes (its step was cancelled) is forgotten after this long."""
_MAX_KEPT = 256
"""Calls remembered; at more a minute the newest speak for the rest."""


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt: when it was made or, once it has ended, when it ended and whether well."""

    number: int
    at_s: float
    was_right: bool | None = None


@dataclass(frozen=True, slots=True)
class Breaker:
    """`calls` are in the order in which they were made; `made` counts all there ever were, and is
    the number of the newest."""

    calls: tuple[Call, ...] = ()
    made: int = 0
    opened_s: float | None = None
    open_for_s: float = 0.0
    probe: Call | None = None
    reason: str = ""

    def state(self, now_s: float) -> BreakerState:
        """Open, closed, or half-open: open time is over and no probe is under way."""
        if self.opened_s is None:
            return BreakerState.CLOSED
        if now_s < self.opened_s + self.open_for_s:
            return BreakerState.OPEN
        if self.probe is not None and now_s < self.probe.at_s + PROBE_PATIENCE_S:
            return BreakerState.OPEN
        return BreakerState.HALF_OPEN

    def opens_again_in_s(self, now_s: float) -> float:
        """Seconds until a probe may go; 0 when one may go now."""
        if self.opened_s is None:
            return 0.0
        return max(0.0, self.opened_s + self.open_for_s - now_s)


def started(breaker: Breaker, now_s: float) -> Breaker:
    """An attempt starts; its number is the breaker's `made`. In the half-open state it is the
    probe, and holds the others back."""
    call = Call(breaker.made + 1, now_s)
    is_probe = breaker.state(now_s) is BreakerState.HALF_OPEN
    return replace(
        breaker,
        calls=(*breaker.calls[-(_MAX_KEPT - 1) :], call),
        made=call.number,
        probe=call if is_probe else breaker.probe,
    )


def ended(breaker: Breaker, number: int) -> Breaker:
    """An attempt came to nothing: throttled, our own fault, cancelled. It says nothing of the
    backend; but were it the probe, the next may go."""
    probe = None if _is_probe(breaker, number) else breaker.probe
    return replace(breaker, calls=_without(breaker.calls, number), probe=probe)


def succeeded(breaker: Breaker, number: int, now_s: float) -> Breaker:
    """An attempt came back well: whatever was, the backend works now."""
    if breaker.opened_s is None:
        return replace(breaker, calls=_with(breaker.calls, Call(number, now_s, True)))
    under_way = tuple(call for call in breaker.calls if call.was_right is None)
    return Breaker(_without(under_way, number), breaker.made)


def failed(
    breaker: Breaker,
    number: int,
    now_s: float,
    reason: str,
    *,
    is_fatal: bool = False,
    limits: BreakerConfig = DEFAULT,
) -> Breaker:
    """An attempt failed in a way that counts. `is_fatal` (401, 402, 403) opens it at once."""
    if breaker.opened_s is not None:
        if not _is_probe(breaker, number):
            return ended(breaker, number)  # from before it opened: it says nothing new
        longer = min(breaker.open_for_s * 2, limits.open_s_max)
        return Breaker(_without(breaker.calls, number), breaker.made, now_s, longer, None, reason)
    calls = _with(breaker.calls, Call(number, now_s, False))
    if is_fatal:
        return Breaker(calls, breaker.made, now_s, limits.open_s_max, None, reason)
    if _row(calls, number) >= limits.failures or _is_most(calls, now_s):
        return Breaker(calls, breaker.made, now_s, limits.open_s, None, reason)
    return replace(breaker, calls=calls, reason=reason)


def _row(calls: tuple[Call, ...], number: int) -> int:
    """How many failed one after the other, as they were made, around this one."""
    row, has_it = 0, False
    for call in calls:
        if call.was_right is False:
            row, has_it = row + 1, has_it or call.number == number
        elif has_it:
            break
        else:
            row = 0
    return row


def _is_most(calls: tuple[Call, ...], now_s: float) -> bool:
    """Whether most of the calls of the last minute failed; those under way have not."""
    recent = [call for call in calls if call.was_right is None or call.at_s > now_s - WINDOW_S]
    bad = sum(call.was_right is False for call in recent)
    return len(recent) >= MIN_CALLS and bad > FAILED_SHARE * len(recent)


def _with(calls: tuple[Call, ...], call: Call) -> tuple[Call, ...]:
    """With this outcome in the place of its call; one made too long ago is not remembered."""
    return tuple(call if each.number == call.number else each for each in calls)


def _without(calls: tuple[Call, ...], number: int) -> tuple[Call, ...]:
    return tuple(each for each in calls if each.number != number)


def _is_probe(breaker: Breaker, number: int) -> bool:
    return breaker.probe is not None and breaker.probe.number == number
