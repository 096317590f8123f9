"""A breaker opens on failures, rests longer each time, probes with one request, and closes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.config.policy import BreakerConfig
from appliance.router.breaker import Breaker, ended, failed, started, succeeded
from appliance.router.types import BreakerState


def broken(at_s: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(5):
        breaker = failed(breaker, at_s, "500")
    return breaker


def test_five_failures_in_a_row_open_it() -> None:
    breaker = Breaker()
    for _ in range(4):
        breaker = failed(breaker, 0.0, "500")
    assert breaker.state(0.0) is BreakerState.CLOSED
    assert failed(breaker, 0.0, "500").state(0.0) is BreakerState.OPEN


def test_more_than_half_failed_within_a_minute_opens_it() -> None:
    breaker = Breaker()
    for second, is_right in enumerate((True, False, False, True, False)):
        now_s = float(second)
        breaker = succeeded(breaker, now_s) if is_right else failed(breaker, now_s, "x")
    assert breaker.state(5.0) is BreakerState.OPEN


def test_old_failures_are_forgotten() -> None:
    breaker = Breaker()
    for second in (0.0, 1.0, 2.0, 3.0):
        breaker = failed(breaker, second, "x")
    breaker = succeeded(breaker, 4.0)
    breaker = failed(breaker, 100.0, "x")
    assert breaker.state(100.0) is BreakerState.CLOSED


def test_one_probe_goes_and_holds_the_others_back() -> None:
    breaker = broken()
    assert breaker.state(4.9) is BreakerState.OPEN
    assert breaker.state(5.0) is BreakerState.HALF_OPEN
    probing = started(breaker, 5.0)
    assert probing.state(5.1) is BreakerState.OPEN
    assert succeeded(probing, 6.0).state(6.0) is BreakerState.CLOSED


def test_a_probe_that_never_reports_is_forgotten() -> None:
    probing = started(broken(), 5.0)
    assert probing.state(200.0) is BreakerState.HALF_OPEN


def test_a_probe_that_says_nothing_of_the_backend_lets_the_next_one_go() -> None:
    probing = started(broken(), 5.0)
    throttled = ended(probing)
    assert throttled.state(5.1) is BreakerState.HALF_OPEN
    assert ended(broken()).state(0.1) is BreakerState.OPEN
    assert ended(Breaker()) == Breaker()


def test_each_failed_probe_doubles_the_rest_up_to_half_a_minute() -> None:
    breaker, now_s, rests = broken(), 0.0, []
    for _ in range(8):
        rests.append(breaker.open_for_s)
        now_s += breaker.open_for_s
        breaker = failed(started(breaker, now_s), now_s, "500")
    assert rests == [5, 10, 20, 30, 30, 30, 30, 30]


def test_a_straggler_from_before_it_opened_does_not_lengthen_the_rest() -> None:
    assert failed(broken(), 1.0, "late") == broken()


def test_a_wrong_key_opens_it_at_once_and_for_long() -> None:
    breaker = failed(Breaker(), 0.0, "401", is_fatal=True)
    assert breaker.state(BreakerConfig().open_s_max - 1) is BreakerState.OPEN


def test_new_work_goes_back_within_a_minute_of_recovery_after_a_short_outage() -> None:
    breaker, now_s = broken(), 0.0
    while now_s < 60.0:
        if breaker.state(now_s) is BreakerState.HALF_OPEN:
            breaker = failed(started(breaker, now_s), now_s, "500")
        now_s += 0.5
    assert breaker.opens_again_in_s(60.0) <= 60.0


@given(st.lists(st.tuples(st.sampled_from(["ok", "bad", "start"]), st.floats(0, 30)), max_size=80))
def test_it_always_comes_back_to_half_open_within_the_longest_rest(
    history: list[tuple[str, float]],
) -> None:
    breaker, now_s = Breaker(), 0.0
    for what, step_s in history:
        now_s += step_s
        if what == "ok":
            breaker = succeeded(breaker, now_s)
        elif what == "bad":
            breaker = failed(breaker, now_s, "x")
        else:
            breaker = started(breaker, now_s)
        assert breaker.opens_again_in_s(now_s) <= BreakerConfig().open_s_max
        assert len(breaker.outcomes) <= 256
    assert breaker.state(now_s + BreakerConfig().open_s_max + 1) is not BreakerState.OPEN


def test_the_configuration_says_when_it_opens_and_for_how_long() -> None:
    limits = BreakerConfig(failures=2, open_s=1.0, open_s_max=1.5)
    breaker = failed(failed(Breaker(), 0.0, "500", limits=limits), 0.0, "500", limits=limits)
    assert breaker.opens_again_in_s(0.0) == 1.0
    again = failed(started(breaker, 1.0), 1.0, "500", limits=limits)
    assert again.opens_again_in_s(1.0) == 1.5
