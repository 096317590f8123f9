"""The score starts with its prior, learns from outcomes, forgets on drift, and survives bytes."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from appliance.router.learn import Drift, Learner, Outcome, Signals, credit, outcome_of
from appliance.router.score import SIZE, Prior
from appliance.router.types import Place, Score, StepFacts
from tests.router.test_route import CLAUDE, LOCAL, STEP

EASY = "Please rename the variable in this short function and run the formatter."
HARD = "Prove that the integral of 3x^2/(1+x^4) from 0 to 7 converges; derive its exact value."


def facts(text: str) -> StepFacts:
    return replace(STEP, text=text)


def taught(count: int = 120, seed: int = 1) -> Learner:
    """A learner whose local model does well on one kind of text and badly on the other."""
    draw = random.Random(seed)
    learner = Learner(Prior.shipped())
    for _ in range(count):
        text, chance = draw.choice([(EASY, 0.95), (HARD, 0.15)])
        passed = draw.random() < chance
        seen = outcome_of(learner.scorer, facts(text), LOCAL, 1.0, Signals(tests_passed=passed))
        assert seen is not None
        learner.learn(seen)
    return learner


def score(learner: Learner, text: str) -> Score:
    return learner.scorer.score(facts(text), (LOCAL, CLAUDE))


def test_an_untaught_score_has_an_opinion_within_bounds() -> None:
    found = score(Learner(Prior.shipped()), HARD)
    assert 0.02 <= found.local_right <= 0.98
    assert found.certainty == 0.0


def test_it_learns_which_work_local_does_well() -> None:
    learner = taught()
    assert score(learner, EASY).by_model["qwen"] > 0.75
    assert score(learner, HARD).by_model["qwen"] < 0.4
    assert score(learner, HARD).gain > score(learner, EASY).gain + 0.3


def test_it_learns_the_opposite_after_the_world_turned() -> None:
    learner = taught()
    for _ in range(120):
        seen = outcome_of(learner.scorer, facts(HARD), LOCAL, 1.0, Signals(tests_passed=True))
        assert seen is not None
        learner.learn(seen)
    assert score(learner, HARD).by_model["qwen"] > 0.6


def test_an_agent_with_its_own_record_is_told_apart() -> None:
    learner = Learner(Prior.shipped())
    for agent, right in (("lucky", True), ("unlucky", False)) * 60:
        step = replace(facts(EASY), agent=agent)
        seen = outcome_of(learner.scorer, step, LOCAL, 1.0, Signals(tests_passed=right))
        assert seen is not None
        learner.learn(seen)
    lucky, unlucky = (
        learner.scorer.score(replace(facts(EASY), agent=agent), (LOCAL,)).local_right
        for agent in ("lucky", "unlucky")
    )
    assert lucky > unlucky + 0.3


def test_an_agent_seen_for_the_first_time_makes_the_score_unsure_again() -> None:
    def spread(learner: Learner) -> float:
        return float(np.trace(learner.scorer.sides[Place.LOCAL].covariance))

    same, other = taught(), taught()
    for learner, agent in ((same, STEP.agent), (other, "newcomer")):
        step = replace(facts(EASY), agent=agent)
        seen = outcome_of(learner.scorer, step, LOCAL, 1.0, Signals(tests_passed=True))
        assert seen is not None
        learner.learn(seen)
    assert spread(other) > spread(same)


def test_scoring_never_changes_what_is_scored() -> None:
    learner = taught(20)
    before = learner.to_bytes()
    first = score(learner, HARD)
    assert score(learner, HARD) == first
    assert learner.to_bytes() == before


def test_a_snapshot_restores_the_same_scores() -> None:
    learner = taught(40)
    again = Learner.from_bytes(learner.to_bytes(), Prior.shipped())
    assert score(again, HARD) == score(learner, HARD)


def test_replaying_the_outcomes_rebuilds_the_learner() -> None:
    learner = Learner(Prior.shipped())
    table = []
    for text, passed in ((EASY, True), (HARD, False)) * 20:
        seen = outcome_of(learner.scorer, facts(text), LOCAL, 0.5, Signals(tests_passed=passed))
        assert seen is not None
        table.append(json.dumps(seen.to_json()))
        learner.learn(seen)
    again = Learner(Prior.shipped())
    for row in table:
        again.learn(Outcome.from_json(json.loads(row)))
    assert score(again, HARD) == score(learner, HARD)


def test_an_outcome_of_another_size_is_refused() -> None:
    body = Outcome(np.zeros(SIZE), Place.LOCAL, "m", (), 1.0, 1.0).to_json()
    with pytest.raises(ValueError, match="features"):
        Outcome.from_json({**body, "inputs": "AAAAAAAA"})


def test_tests_and_people_count_above_a_judge_and_silence_counts_little() -> None:
    assert credit(Signals(tests_passed=False, judge=1.0)) == (0.0, 1.0)
    assert credit(Signals(user_overrode=True, judge=1.0)) == (0.0, 1.0)
    assert credit(Signals(judge=0.9)) == (0.9, 0.3)
    assert credit(Signals(finished=True)) == (1.0, 0.2)
    assert credit(Signals()) is None


def test_drift_is_called_on_a_run_of_errors_and_not_on_noise() -> None:
    draw = random.Random(3)
    noisy = Drift()
    for _ in range(500):
        noisy = noisy.after(draw.choice([-0.3, 0.3]))
    assert not noisy.is_over
    run = Drift()
    for _ in range(60):
        run = run.after(0.6)
    assert run.is_over


def test_the_shipped_parameters_are_small_and_survive_a_round_trip() -> None:
    prior = Prior.shipped()
    body = prior.to_bytes()
    assert len(body) < 200_000
    assert Prior.from_bytes(body).version == prior.version
    assert prior.weights.shape == (2, SIZE)
