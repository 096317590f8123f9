"""A decision survives JSON, replays to the same result, and reads as sentences."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given

from appliance.router.explain import explain, explain_verdict, money
from appliance.router.record import decided, decision_from_json, decision_to_json
from appliance.router.types import NoRoute, Route, Score, StepFacts, TargetFacts, Tuning
from appliance.router.verify import Escalate, EscalationReason
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


def test_a_verdict_reads_as_a_sentence() -> None:
    text = explain_verdict(Escalate(EscalationReason.UNLIKELY, 0.31, 60_000, 19_000))
    assert text == (
        "The local answer was handed to the cloud: it was too unlikely to be right (31%); "
        "another was expected to gain 6.00 ct for 1.90 ct."
    )
    assert money(2_500_000) == "$2.50"
