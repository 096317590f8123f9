"""Forecasts: what the races learn, and what the loads of whole traces show of it."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.scheduler.forecast import Forecast, Frequency
from appliance.scheduler.races import Races
from appliance.scheduler.replay import lfu_loads, lru_loads, optimum_loads, replay
from appliance.scheduler.rhythm import Rhythms
from tests.scheduler.families import FAMILIES, make


def test_a_sign_that_tells_who_is_back_first_gains_weight() -> None:
    races, rng = Races(), Random(0)
    before = races.weights
    for number in range(400):
        told = {f"m{n}": (rng.gauss(0, 1), rng.gauss(0, 1), rng.gauss(0, 1), 0.0) for n in range(4)}
        races.start(told, float(number))
        for name in sorted(told, key=lambda name: -told[name][2]):
            races.came(name, number + 0.5)
    gained = [after - then for after, then in zip(races.weights, before, strict=True)]
    assert gained[2] == max(gained)
    assert races.weights[2] > 3 * max(races.weights[0], races.weights[1])


def test_rates_are_in_uses_per_second_after_some_races() -> None:
    races = Races()
    signs = (-3.0, -3.0, -3.0, -3.0)
    for number in range(600):
        races.start({"a": signs, "b": signs}, number * 100.0)
        races.came("a", number * 100.0 + 20.0)
        races.came("b", number * 100.0 + 20.0)
    assert 1 / races.rate(signs) == pytest.approx(20.0, rel=0.05)


@given(st.lists(st.tuples(*[st.floats(-25, 25)] * 4), min_size=2, max_size=12))
@settings(max_examples=50, deadline=None)
def test_rates_stay_finite_whatever_signs_race(all_signs: list[tuple[float, ...]]) -> None:
    races = Races()
    runners = {f"m{n}": (s[0], s[1], s[2], s[3]) for n, s in enumerate(all_signs)}
    for round_ in range(20):
        races.start(runners, float(round_))
        for name in runners:
            races.came(name, float(round_))
    assert all(0 < races.rate(signs) < float("inf") for signs in runners.values())


def test_frequency_fades_and_shares_sum_to_no_more_than_one() -> None:
    frequency = Frequency(half_life=10)
    for _ in range(5000):
        frequency.add("old")
    for _ in range(10):
        frequency.add("new")
    assert frequency.share("old") == pytest.approx(0.5, rel=0.01)
    assert frequency.share("old") + frequency.share("new") <= 1.0


def test_a_forgotten_model_is_expected_never_again() -> None:
    forecast = Forecast()
    for number in range(50):
        for model in "ab":
            forecast.observe("x", model, float(number), size=1, reload_s=5.0, budget=1)
    assert forecast.next_use_s("a", 60.0) < 1e9
    forecast.forget("a")
    assert forecast.next_use_s("a", 60.0) == 1e9
    forecast.observe("x", "b", 61.0, size=1, reload_s=5.0, budget=1)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_loads_are_hardly_ever_more_than_those_of_lru_and_lfu(family: str) -> None:
    """The bound is for young traces: what is learnt in 2,500 requests is learnt from nothing."""
    trace = make(family, seed=5, rows=2500)
    models = [row.model for row in trace]
    for slots in (2, 4):
        loads = replay(trace, slots).loads
        simple = min(lru_loads(models, slots), lfu_loads(models, slots))
        assert optimum_loads(models, slots) <= loads <= 1.04 * simple + 3


def test_agents_with_a_taste_of_their_own_cost_a_twentieth_fewer_loads_than_lru() -> None:
    trace = make("own taste", seed=6, rows=4000)
    models = [row.model for row in trace]
    assert replay(trace, 4).loads < 0.95 * lru_loads(models, 4)


def test_a_job_of_a_fixed_number_of_steps_is_expected_to_end_after_them() -> None:
    """Three steps ten seconds apart, then a pause: the gaps alone say that it mostly goes on."""
    rhythms, now_s = Rhythms(), 0.0
    rhythms.set_stay(100.0)
    after: list[float] = []
    for number in range(90):
        now_s += 10.0 if number % 3 else 1000.0
        rhythms.observe("job", "a", now_s)
        rhythms.observe("other", "b", now_s + 1.0)
        after.append(rhythms.rates("a", now_s + 5.0)[0])
    assert max(after[-1], after[-4]) < 0.25 * min(after[-2], after[-3], after[-5], after[-6])


def test_schedules_of_a_fixed_number_of_steps_cost_an_eighth_fewer_loads_than_lru() -> None:
    trace = make("schedule", seed=6, rows=4000)
    models = [row.model for row in trace]
    assert replay(trace, 2).loads < 0.88 * lru_loads(models, 2)


def test_the_model_after_the_next_one_is_expected_before_one_that_is_due_much_later() -> None:
    """One agent goes through three models, another asks for its own every quarter of an hour."""
    rhythms, now_s = Rhythms(), 0.0
    rhythms.set_stay(400.0)
    for number in range(901):
        now_s += 10.0
        rhythms.observe("in turn", "cda"[number % 3], now_s)
        if number % 90 == 45:
            rhythms.observe("seldom", "b", now_s)
    assert number % 3 == 0
    a, b = (rhythms.rates(model, now_s)[0] for model in "ab")
    assert a > 2 * b


@given(
    st.lists(
        st.tuples(
            st.sampled_from("xyz"), st.sampled_from("abcd"), st.floats(0, 1e7), st.floats(0, 1e6)
        ),
        min_size=1,
    ),
    st.floats(0, 1e8),
)
@settings(max_examples=100, deadline=None)
def test_rates_of_use_are_finite_whatever_the_gaps_and_the_grains(
    requests: list[tuple[str, str, float, float]], silent_s: float
) -> None:
    rhythms, now_s = Rhythms(), 0.0
    for agent, model, gap_s, stay_s in requests:
        now_s += gap_s
        rhythms.set_stay(stay_s)
        rhythms.observe(agent, model, now_s)
        told = [rate for name in "abcd" for rate in rhythms.rates(name, now_s)]
        told += rhythms.rates(model, now_s + silent_s)
        assert all(0 <= rate < float("inf") for rate in told)


def _told(forecast: Forecast, seed: int, learns: bool) -> list[tuple[str, list[float]]]:
    """What is answered now and then, in a random course of events on three places."""
    rng, now_s, answers = Random(seed), 0.0, []
    for _ in range(600):
        now_s += rng.expovariate(1.0)
        agent = rng.randrange(5)
        model = f"m{(agent + rng.randrange(3)) % 7}"
        forecast.observe(f"a{agent}", model, now_s, size=1, reload_s=5.0, budget=3)
        if rng.random() < 0.3:
            forecast.loaded(now_s, 3)
        if rng.random() < 0.01:
            forecast.forget(model)
        if rng.random() < 0.05:
            names = [f"m{n}" for n in range(7)]
            forecast.prepare(names, now_s)
            answers.append((forecast.followed, [forecast.next_use_s(n, now_s) for n in names]))
        while learns and forecast.learn_next():
            pass
    return answers


def test_when_it_is_learnt_changes_no_answer() -> None:
    for seed in range(5):
        assert _told(Forecast(), seed, learns=True) == _told(Forecast(), seed, learns=False)


def test_what_is_noted_is_bounded_where_nobody_ever_asks() -> None:
    forecast = Forecast()
    for number in range(1000):
        forecast.observe("x", "a", float(number), size=1, reload_s=5.0, budget=1)
    left = 0
    while forecast.learn_next():
        left += 1
    assert left < 100
