"""A start that finds no room is tried again, each time later, until one finds it."""

from __future__ import annotations

from appliance.scheduler.breaker import MAX_DOUBLINGS, Breaker
from appliance.scheduler.policy import Policy


def pauses_s(breaker: Breaker, times: int) -> list[float]:
    found = []
    for _ in range(times):
        breaker.declined("no room", 100.0)
        found.append(breaker.retry_in_s(100.0))
    return found


def test_the_pause_after_a_declined_start_doubles_up_to_a_bound() -> None:
    breaker = Breaker(Policy(backoff_s=1.0))
    assert pauses_s(breaker, MAX_DOUBLINGS + 3) == [1, 2, 4, 8, 16, 16, 16]
    assert not breaker.is_open(100.0), "who waits is not refused for it"


def test_a_start_that_found_room_ends_the_series() -> None:
    breaker = Breaker(Policy(backoff_s=1.0))
    pauses_s(breaker, 3)
    breaker.loaded()
    assert pauses_s(breaker, 1) == [1]
