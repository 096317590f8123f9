"""A decision survives JSON, replays to the same result, and reads as sentences."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.router.explain import explain, explain_judgement, money
from appliance.router.record import (
    decided,
    decision_from_json,
    decision_to_json,
    judgement_from_json,
    judgement_to_json,
)
from appliance.router.types import NoRoute, Policy, Route, Score, StepFacts, TargetFacts, Tuning
from appliance.router.verify import AnswerFacts, Escalate, EscalationReason, Judgement, Keep, judge
from appliance.types import Label
from tests.router.test_route import CLAUDE, HARD, LOCAL, STEP, draws, scores, steps, worlds


@given(steps, worlds, scores, draws)
def test_a_journalled_decision_replays_to_the_same_result(
    step: StepFacts, world: tuple[TargetFacts, ...], score: Score, draw: float
) -> None:
    first = decided(step, world, score, draw, Tuning(explore=0.3))
    read = decision_from_json(json.loads(json.dumps(decision_to_json(first))))
    assert read == first
    assert read.replayed() == first.outcome


def test_a_record_holds_no_text_of_the_prompt() -> None:
    secret = "the canary sings at noon"
    made = decided(
        replace(STEP, text=secret, label=Label.PRIVATE), (LOCAL, CLAUDE), HARD, 0.5, Tuning()
    )
    assert "canary" not in json.dumps(decision_to_json(made))


def test_a_record_of_an_unknown_version_is_refused() -> None:
    made = decision_to_json(decided(STEP, (LOCAL,), HARD, 0.5, Tuning()))
    with pytest.raises(ValueError, match="version 99"):
        decision_from_json({**made, "version": 99})


def test_an_explanation_names_the_choice_the_numbers_and_what_lost() -> None:
    made = decided(STEP, (LOCAL, CLAUDE), HARD, 0.5, Tuning()).outcome
    assert isinstance(made, Route)
    first, numbers, loser, chance = explain(made)
    assert first.startswith("claude (in the cloud) takes this step")
    assert "90% likely to be right, 1.35 ct" in numbers
    assert "-60 points of quality" in loser
    assert "98.0%" in chance or "2.0%" in chance


def test_an_explanation_of_no_route_says_why_for_each_model() -> None:
    step = replace(STEP, label=Label.PRIVATE, needs_images=True)
    made = decided(step, (LOCAL, CLAUDE), HARD, 0.5, Tuning()).outcome
    assert isinstance(made, NoRoute)
    lines = explain(made)
    assert lines[1] == "qwen (on this machine) is out: it cannot read images."
    assert "may not leave the machine" in lines[2]


def judged(answer: AnswerFacts) -> Judgement:
    because = {"other answers": -0.22, "length": -0.034, "tone": 0.001}
    verdict = judge(Policy.BALANCED, answer, Tuning(), is_interactive=True)
    return Judgement(Policy.BALANCED, answer, Tuning(), True, verdict, 0.6, because, "2+31")


@given(
    st.builds(
        AnswerFacts,
        p_right=st.floats(0, 1),
        calls_valid=st.none() | st.booleans(),
        was_cut=st.booleans(),
        cloud_right=st.none() | st.floats(0, 1),
        cloud_cost_micro_usd=st.integers(0, 10**6),
        cloud_seconds=st.floats(0, 100),
    )
)
def test_a_journalled_judgement_replays_to_the_same_verdict(answer: AnswerFacts) -> None:
    first = judged(answer)
    read = judgement_from_json(json.loads(json.dumps(judgement_to_json(first))))
    assert read == first
    assert read.replayed() == first.verdict


def test_a_judgement_says_what_of_the_answer_counted() -> None:
    kept = judged(AnswerFacts(p_right=0.345, was_sampled_again=True))
    assert isinstance(kept.verdict, Keep)
    assert explain_judgement(kept) == (
        "The answer was kept: 34% likely to be right (expected 60% before it, two samples; "
        "in points: other answers -22, length -3; score 2+31)."
    )


def test_an_escalation_says_what_another_answer_was_worth() -> None:
    made = judged(AnswerFacts(p_right=0.31, cloud_right=0.91, cloud_cost_micro_usd=19_000))
    assert isinstance(made.verdict, Escalate)
    assert made.verdict.reason is EscalationReason.UNLIKELY
    text = explain_judgement(made)
    assert text.startswith(
        "The local answer was handed to the cloud: it was too unlikely to be right (31% (expected"
    )
    assert text.endswith("another was expected to gain 6.00 ct for 1.90 ct.")
    assert money(2_500_000) == "$2.50"
