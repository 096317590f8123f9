"""After generation: what an answer shows moves both sides, from outcomes, the same on replay."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from appliance.router.after import AGENT_WEIGHT, After, Usual
from appliance.router.answers import ANSWER_SIZE, LocalAnswer, read_answer
from appliance.router.learn import Learner, Outcome, Shown, Signals, outcome_of
from appliance.router.score import Prior
from appliance.router.types import Place
from tests.router.test_route import CLAUDE, LOCAL, STEP

QUESTION = replace(STEP, text="How many of the 12 apples are left after 5 were eaten?")
BEFORE = {Place.LOCAL: 0.7, Place.CLOUD: 0.9}


def shown(*others: str, text: str = "", logprob: float | None = None) -> Shown:
    local = LocalAnswer(QUESTION.text, "7", 120, others, text=text, mean_logprob=logprob)
    return Shown(read_answer(local).astype(float), "qwen", "a")


def expect(learner: Learner, each: Shown) -> After:
    return learner.expect(QUESTION, each, BEFORE)


def outcomes(learner: Learner, count: int) -> list[Outcome]:
    """Answers that a second sample confirms are right, others wrong and then hard for the cloud."""
    found = []
    for i in range(count):
        for other, local, cloud in (("7", True, True), ("9", False, i % 2 == 0)):
            for target, right in ((LOCAL, local), (CLAUDE, cloud)):
                seen = Signals(tests_passed=right)
                each = outcome_of(learner.scorer, QUESTION, target, 1.0, seen, shown(other))
                assert each is not None
                found.append(each)
                learner.learn(each)
    return found


def test_what_ships_believes_an_answer_that_other_answers_confirm() -> None:
    fresh = Learner(Prior.shipped())
    alone, confirmed, against = (expect(fresh, shown(*o)) for o in ((), ("7", "7"), ("9", "9")))
    assert confirmed.local_right > alone.local_right > against.local_right
    assert against.because["other answers"] < -0.05


def test_what_ships_doubts_unlikely_tokens_and_hedging() -> None:
    fresh = Learner(Prior.shipped())
    sure = expect(fresh, shown(logprob=-0.1)).local_right
    assert sure > expect(fresh, shown(logprob=-1.6)).local_right
    plain = expect(fresh, shown(text="It is 7.")).local_right
    assert plain > expect(fresh, shown(text="I think, perhaps, probably 7?")).local_right


def test_outcomes_teach_what_a_sign_means_here_for_both_sides() -> None:
    learner = Learner(Prior.shipped())
    outcomes(learner, 30)
    good, bad = expect(learner, shown("7")), expect(learner, shown("9"))
    assert good.local_right > 0.85
    assert bad.local_right < 0.35
    assert good.cloud_right > bad.cloud_right + 0.15


def test_replaying_the_table_gives_the_same_expectations() -> None:
    learner = Learner(Prior.shipped())
    table = [json.dumps(each.to_json()) for each in outcomes(learner, 10)]
    again = Learner(Prior.shipped())
    for row in table:
        again.learn(Outcome.from_json(json.loads(row)))
    assert expect(again, shown("9")) == expect(learner, shown("9"))


def test_a_snapshot_restores_the_same_expectations() -> None:
    learner = Learner(Prior.shipped())
    outcomes(learner, 10)
    again = Learner.from_bytes(learner.to_bytes(), Prior.shipped())
    assert expect(again, shown("9")) == expect(learner, shown("9"))


def test_expecting_changes_nothing() -> None:
    learner = Learner(Prior.shipped())
    before = learner.to_bytes()
    expect(learner, shown("9"))
    assert learner.to_bytes() == before


def test_an_answer_that_was_handed_up_on_suspicion_is_judged_by_the_clouds() -> None:
    learner = Learner(Prior.shipped())
    for agrees, right in ((True, 1.0), (False, 0.0)):
        seen = Signals(cloud_agrees=agrees)
        each = outcome_of(learner.scorer, QUESTION, LOCAL, 1.0, seen, shown())
        assert each is not None
        assert each.right == right


def test_what_is_usual_moves_from_the_priors_to_what_was_seen() -> None:
    usual, centre = Usual(), np.zeros(ANSWER_SIZE)
    for _ in range(int(AGENT_WEIGHT)):
        usual.saw(np.ones(ANSWER_SIZE))
    assert usual.mean(centre, AGENT_WEIGHT) == pytest.approx(0.5)
    assert usual.spread(usual.mean(centre, 50.0), centre, np.ones(ANSWER_SIZE)).min() > 0.5


def test_an_answer_of_more_digits_than_a_number_holds_is_still_read() -> None:
    assert np.isfinite(read_answer(LocalAnswer("How many?", "9" * 400, 400, ("1",)))).all()
