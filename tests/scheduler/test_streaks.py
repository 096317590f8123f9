"""Streaks: how long an agent goes on."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.scheduler.streaks import Streaks


def _odds(lengths: list[int], after: int) -> list[float]:
    """Of a streak to go on after its first, second, … step, against the average, once streaks of
    these lengths were seen."""
    agent, everybody = Streaks(), Streaks()
    for length in lengths:
        for _ in range(length - 1):
            agent.step(True, everybody)
        agent.step(False, everybody)
    found = []
    for _ in range(after):
        found.append(agent.goes_on(everybody))
        agent.step(True, everybody)
    return [odds for odds in found if odds is not None]


def test_streaks_of_one_length_end_where_they_always_did() -> None:
    first, second, third = _odds([3] * 30, 3)
    assert min(first, second) > 5.0
    assert third < 0.1


def test_streaks_that_end_anywhere_are_foretold_by_the_mean() -> None:
    rng = Random(1)
    found = _odds([1 + int(rng.expovariate(1 / 5)) for _ in range(400)], 6)
    assert all(0.5 < odds < 2.0 for odds in found)


def test_who_goes_on_the_likelier_the_longer_is_told_apart_from_the_mean() -> None:
    found = _odds([1, 1, 1, 12] * 50, 6)
    assert found[0] < 0.3
    assert min(found[2:]) > 3.0


def test_an_agent_without_a_past_is_taken_for_one_like_all_others() -> None:
    everybody, others = Streaks(), [Streaks() for _ in range(40)]
    for other in others:
        for _ in range(5):
            other.step(True, everybody)
            other.step(False, everybody)
    newcomer = Streaks()
    first = newcomer.goes_on(everybody)
    newcomer.step(True, everybody)
    second = newcomer.goes_on(everybody)
    assert first is not None
    assert second is not None
    assert second < 1.0 < first


@given(st.lists(st.booleans(), max_size=300))
@settings(max_examples=100, deadline=None)
def test_the_odds_to_go_on_are_finite_and_above_none(steps: list[bool]) -> None:
    agent, everybody = Streaks(), Streaks()
    for goes_on in steps:
        agent.step(goes_on, everybody)
        odds = agent.goes_on(everybody)
        assert odds is None or 0 < odds < float("inf")
