"""A breaker opens on failures, rests longer each time, probes with one request, and closes."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from appliance.config.policy import BreakerConfig
from appliance.router.breaker import DEFAULT, Breaker, ended, failed, started, succeeded
from appliance.router.types import BreakerState


def made(breaker: Breaker, count: int, now_s: float = 0.0) -> tuple[Breaker, list[int]]:
    """Calls that are made at once, and their numbers."""
    numbers = []
    for _ in range(count):
        breaker = started(breaker, now_s)
        numbers.append(breaker.made)
    return breaker, numbers


def after(
    breaker: Breaker,
    now_s: float,
    is_right: bool,
    *,
    is_fatal: bool = False,
    limits: BreakerConfig = DEFAULT,
) -> Breaker:
    """One call, from its start to its end."""
    breaker = started(breaker, now_s)
    if is_right:
        return succeeded(breaker, breaker.made, now_s)
    return failed(breaker, breaker.made, now_s, "500", is_fatal=is_fatal, limits=limits)


def broken(at_s: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(5):
        breaker = after(breaker, at_s, False)
    return breaker


def test_five_failures_in_a_row_open_it() -> None:
    breaker = Breaker()
    for _ in range(4):
        breaker = after(breaker, 0.0, False)
    assert breaker.state(0.0) is BreakerState.CLOSED
    assert after(breaker, 0.0, False).state(0.0) is BreakerState.OPEN


def test_failures_among_calls_that_go_well_are_no_row_however_late_they_are_told() -> None:
    breaker, numbers = made(Breaker(), 16)
    bad = {1, 4, 6, 9, 12, 15}
    for index, number in enumerate(numbers):
        if index not in bad:
            breaker = succeeded(breaker, number, 1.0)
    for index in bad:
        breaker = failed(breaker, numbers[index], 1.1, "529")
    assert breaker.state(1.1) is BreakerState.CLOSED


def test_failures_that_come_sooner_than_the_answers_around_them_are_no_row() -> None:
    breaker, numbers = made(Breaker(), 64)
    for number in numbers[::5]:
        breaker = failed(breaker, number, 0.1, "529")
    assert breaker.state(0.1) is BreakerState.CLOSED


def test_calls_made_at_once_that_all_fail_open_it_whatever_their_order() -> None:
    breaker, numbers = made(Breaker(), 16)
    for number in (*numbers[1::2], *numbers[::2][:5]):
        breaker = failed(breaker, number, 10.0, "timed out")
    assert breaker.state(10.0) is BreakerState.OPEN


def test_calls_that_came_to_nothing_do_not_end_a_row() -> None:
    breaker, numbers = made(Breaker(), 6)
    breaker = ended(breaker, numbers[2])  # throttled
    for number in (*numbers[:2], *numbers[3:]):
        breaker = failed(breaker, number, 1.0, "500")
    assert breaker.state(1.0) is BreakerState.OPEN


def test_more_than_half_failed_within_a_minute_opens_it() -> None:
    breaker = Breaker()
    for second in range(10):
        assert breaker.state(second) is BreakerState.CLOSED
        breaker = after(breaker, second, is_right=second in (0, 4, 7, 8))
    assert breaker.state(10.0) is BreakerState.OPEN


def test_of_a_few_calls_most_may_fail() -> None:
    breaker = Breaker()
    for second, is_right in enumerate((True, False, False, True, False)):
        breaker = after(breaker, float(second), is_right)
    assert breaker.state(5.0) is BreakerState.CLOSED


def test_old_failures_are_forgotten() -> None:
    breaker = Breaker()
    for second in range(9):
        breaker = after(breaker, second, is_right=second % 4 == 3)
    breaker = after(breaker, 100.0, False)
    assert breaker.state(100.0) is BreakerState.CLOSED


def test_one_probe_goes_and_holds_the_others_back() -> None:
    breaker = broken()
    assert breaker.state(4.9) is BreakerState.OPEN
    assert breaker.state(5.0) is BreakerState.HALF_OPEN
    probing = started(breaker, 5.0)
    assert probing.state(5.1) is BreakerState.OPEN
    assert succeeded(probing, probing.made, 6.0).state(6.0) is BreakerState.CLOSED


def test_a_probe_that_never_reports_is_forgotten() -> None:
    probing = started(broken(), 5.0)
    assert probing.state(200.0) is BreakerState.HALF_OPEN


def test_a_probe_that_says_nothing_of_the_backend_lets_the_next_one_go() -> None:
    probing = started(broken(), 5.0)
    throttled = ended(probing, probing.made)
    assert throttled.state(5.1) is BreakerState.HALF_OPEN
    assert ended(broken(), 5).state(0.1) is BreakerState.OPEN
    assert ended(Breaker(), 1) == Breaker()


def test_each_failed_probe_doubles_the_rest_up_to_half_a_minute() -> None:
    breaker, now_s, rests = broken(), 0.0, []
    for _ in range(8):
        rests.append(breaker.open_for_s)
        now_s += breaker.open_for_s
        breaker = after(breaker, now_s, False)
    assert rests == [5, 10, 20, 30, 30, 30, 30, 30]


def opened_with_a_straggler() -> tuple[Breaker, int]:
    straggler = started(Breaker(), 0.0)
    breaker = straggler
    for _ in range(5):
        breaker = after(breaker, 0.0, False)
    assert breaker.state(0.0) is BreakerState.OPEN
    return breaker, straggler.made


def test_a_straggler_from_before_it_opened_does_not_lengthen_the_rest() -> None:
    breaker, straggler = opened_with_a_straggler()
    for now_s in (1.0, 6.0):
        late = failed(breaker, straggler, now_s, "late")
        assert late.open_for_s == 5.0 and late.opened_s == 0.0


def test_a_straggler_neither_ends_the_probe_nor_lets_a_second_one_go() -> None:
    breaker, straggler = opened_with_a_straggler()
    probing = started(breaker, 5.0)
    for late in (failed(probing, straggler, 5.1, "late"), ended(probing, straggler)):
        assert late.state(5.2) is BreakerState.OPEN
        assert late.probe == probing.probe


def test_an_answer_that_began_before_it_opened_closes_it() -> None:
    breaker, straggler = opened_with_a_straggler()
    assert succeeded(breaker, straggler, 0.5).state(0.5) is BreakerState.CLOSED


def test_a_wrong_key_opens_it_at_once_and_for_long() -> None:
    breaker = after(Breaker(), 0.0, False, is_fatal=True)
    assert breaker.state(BreakerConfig().open_s_max - 1) is BreakerState.OPEN


def test_new_work_goes_back_within_a_minute_of_recovery_after_a_short_outage() -> None:
    breaker, now_s = broken(), 0.0
    while now_s < 60.0:
        if breaker.state(now_s) is BreakerState.HALF_OPEN:
            breaker = after(breaker, now_s, False)
        now_s += 0.5
    assert breaker.opens_again_in_s(60.0) <= 60.0


STEPS = st.sampled_from(["ok", "bad", "start", "nothing"])


@given(st.lists(st.tuples(STEPS, st.floats(0, 30), st.integers(0, 7)), max_size=80))
def test_it_always_comes_back_to_half_open_within_the_longest_rest(
    history: list[tuple[str, float, int]],
) -> None:
    breaker, now_s, under_way = Breaker(), 0.0, [0]
    for what, step_s, which in history:
        now_s += step_s
        if what == "start":
            breaker = started(breaker, now_s)
            under_way.append(breaker.made)
            continue
        number = under_way.pop(which % len(under_way)) if under_way else 0
        if what == "ok":
            breaker = succeeded(breaker, number, now_s)
        elif what == "bad":
            breaker = failed(breaker, number, now_s, "x")
        else:
            breaker = ended(breaker, number)
        assert breaker.opens_again_in_s(now_s) <= BreakerConfig().open_s_max
    for number in under_way:  # whatever was started comes to an end
        breaker = ended(breaker, number)
    assert breaker.state(now_s + BreakerConfig().open_s_max + 1) is not BreakerState.OPEN


def test_what_it_remembers_is_bounded() -> None:
    breaker, numbers = made(Breaker(), 1_000)
    assert len(breaker.calls) == 256
    assert failed(breaker, numbers[0], 1.0, "from long ago").state(1.0) is BreakerState.CLOSED


@given(st.integers(0, 10_000))
def test_what_comes_of_calls_made_at_once_does_not_depend_on_the_order_they_end_in(
    seed: int,
) -> None:
    """As long as it stays closed; once it has opened, what is told after is late."""
    chance = random.Random(seed)
    first, numbers = made(Breaker(), 12)
    is_right = {number: chance.random() > 0.4 for number in numbers}
    ends = []
    for _ in range(2):
        breaker, order = first, list(numbers)
        chance.shuffle(order)
        for number in order:
            if is_right[number]:
                breaker = succeeded(breaker, number, 1.0)
            else:
                breaker = failed(breaker, number, 1.0, "x")
            if breaker.state(1.0) is BreakerState.OPEN:
                break
        ends.append(breaker.state(1.0))
    assert ends[0] is ends[1]


def test_the_configuration_says_when_it_opens_and_for_how_long() -> None:
    limits = BreakerConfig(failures=2, open_s=1.0, open_s_max=1.5)
    breaker = after(Breaker(), 0.0, False, limits=limits)
    breaker = after(breaker, 0.0, False, limits=limits)
    assert breaker.opens_again_in_s(0.0) == 1.0
    again = after(breaker, 1.0, False, limits=limits)
    assert again.opens_again_in_s(1.0) == 1.5
