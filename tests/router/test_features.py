"""Features: the same text gives the same numbers, of fixed size, quickly, whatever the text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.router.answers import ANSWER_NAMES, LocalAnswer, read_answer
from appliance.router.features import SHAPE_NAMES, SHAPE_SIZE, read
from appliance.router.said import is_same, plain, said
from appliance.router.tools import TOOL_NAMES, tool_shape
from appliance.router.words import SKETCH_SIZE

QUESTION = "Which of these is 22.5 % of 1,200?\nA. 270\nB. 250\nC. all of the above"


TOOLS = tool_shape(
    [
        ("Books a seat", {"properties": {"x": {"type": "string"}, "y": {}}, "required": ["x"]}),
        ("", {}),
    ]
)


def named(text: str, tools: tuple[float, ...] = ()) -> dict[str, float]:
    return dict(zip(SHAPE_NAMES, read(text, tools).shape.tolist(), strict=True))


@given(st.text(max_size=300), st.sampled_from([(), TOOLS]))
def test_any_text_gives_finite_numbers_of_one_size(text: str, tools: tuple[float, ...]) -> None:
    found = read(text, tools)
    assert found.shape.shape == (SHAPE_SIZE,)
    assert found.sketch.shape == (SKETCH_SIZE,)
    assert np.isfinite(found.shape).all()
    assert np.isfinite(found.sketch).all()
    assert np.array_equal(read(text, tools).shape, found.shape)


@pytest.mark.parametrize("letter", ["İ", "ẞ", "\u212a", "\ud800", "\0", "日", "🙂"])
def test_a_letter_that_changes_size_with_its_case_is_read(letter: str) -> None:
    assert np.isfinite(read(letter * 90 + " word").shape).all()
    assert named(f"{letter * 9} 5 apples?\nA. {letter * 9}\nB. last")["options"] > 0


def test_options_numbers_and_marks_are_seen() -> None:
    found = named(QUESTION)
    assert round(found["options"] * 10) == 3
    assert found["percent"] == 1.0
    assert found["catch_all"] > 0
    assert found["decimals"] > 0
    assert named("Hello there.")["options"] == 0.0


def test_tool_schemas_count_only_where_there_are_tools() -> None:
    request = "Book a flight and a hotel in Rome, then 'Casa', then a car."
    assert not any(named(request)[name] for name in (*TOOL_NAMES, "asked_names"))
    found = named(request, TOOLS)
    assert found["optional"] == 0.5
    assert found["of_any_type"] == 0.5
    assert found["asked_names"] > 0
    assert found["asked_quotes"] > 0


@given(
    st.recursive(
        st.none() | st.text(max_size=5) | st.integers(),
        lambda each: (
            st.lists(each, max_size=3)
            | st.dictionaries(
                st.sampled_from(["properties", "required", "type", "enum", "description", "x"]),
                each,
            )
        ),
    )
)
def test_any_schema_gives_finite_numbers(schema: object) -> None:
    found = tool_shape([("", schema if isinstance(schema, dict) else {})])
    assert len(found) == len(TOOL_NAMES)
    assert np.isfinite(found).all()


def test_texts_that_share_words_have_near_sketches() -> None:
    one = read("the derivative of a polynomial function").sketch
    like = read("find the derivative of this polynomial").sketch
    other = read("capital cities along the river Danube").sketch
    assert float(one @ like) > float(one @ other) + 0.2


def test_answers_are_compared_without_their_dress() -> None:
    assert plain("$1,200.00") == plain(" 1200 ")
    assert plain("B.") == plain("b")
    assert plain("") == ""


def test_votes_that_agree_against_the_answer_are_a_rival() -> None:
    def votes(*others: str) -> dict[str, float]:
        local = LocalAnswer("How many?", "18", 200, others)
        return dict(zip(ANSWER_NAMES, read_answer(local).tolist(), strict=True))

    assert votes("18", "$18", "18.0")["agree"] == 1.0
    against = votes("20", "20", "18")
    assert against["rival"] > against["agree"]
    assert votes()["has_votes"] == 0.0


@given(st.text(max_size=40), st.lists(st.text(max_size=10), max_size=4), st.integers(0, 10**6))
def test_any_answer_gives_finite_numbers(answer: str, others: list[str], chars: int) -> None:
    found = read_answer(LocalAnswer(QUESTION, answer, chars, tuple(others)))
    assert found.shape == (len(ANSWER_NAMES),)
    assert np.isfinite(found).all()


def shown(answer: str, *others: str, **more: Any) -> dict[str, float]:
    local = LocalAnswer(QUESTION, answer, 200, others, **more)
    return dict(zip(ANSWER_NAMES, read_answer(local).tolist(), strict=True))


def test_an_answer_is_placed_among_the_options_and_beside_the_others() -> None:
    near, far = shown("A", "B", "B"), shown("A", "C", "B")
    assert near["others_agree"] == 1.0
    assert far["others_agree"] == 0.0
    assert near["distance"] > 0.0
    assert far["distance"] == 0.0
    assert near["options"] == pytest.approx(0.3)


def test_hedges_repeats_and_log_probabilities_are_seen() -> None:
    plain_one = shown("270", text="It is 270.")
    lost = shown("270", text="I think it might be. " * 9, mean_logprob=-1.5, min_logprob=-7.0)
    assert lost["hedges"] > plain_one["hedges"] == 0.0
    assert lost["repeats"] > 0.5 > plain_one["repeats"]
    assert lost["logprob"] < plain_one["logprob"]
    assert (plain_one["has_logprobs"], lost["has_logprobs"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Because 3 + 4 is 7.\nThe answer is 7.", "7"),
        ("So we get \\boxed{42}, as was to be shown.", "42"),
        ("Answer: (B) Framing bias", "B"),
        ("Step one, then step two.\nC. Both", "C"),
        ("18", "18"),
        ("A long reply in prose about rivers. " * 5, ""),
        ("", ""),
    ],
)
def test_a_reply_comes_down_to_its_last_word(text: str, answer: str) -> None:
    assert said(text) == answer


def test_calls_are_the_same_whatever_the_order_of_their_arguments() -> None:
    one = said("Let me see.", [("book", {"day": 1, "seat": "A"})])
    other = said("", [("book", {"seat": "A", "day": 1})])
    assert is_same(one, other) is True
    assert is_same(one, said("", [("book", {"seat": "B", "day": 1})])) is False
    assert is_same("", one) is None
