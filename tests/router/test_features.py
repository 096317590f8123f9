"""Features: the same text gives the same numbers, of fixed size, quickly, whatever the text."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from appliance.router.answers import ANSWER_NAMES, LocalAnswer, plain, read_answer
from appliance.router.features import SHAPE_NAMES, SHAPE_SIZE, SKETCH_SIZE, read

QUESTION = "Which of these is 22.5 % of 1,200?\nA. 270\nB. 250\nC. all of the above"


def named(text: str) -> dict[str, float]:
    return dict(zip(SHAPE_NAMES, read(text).shape.tolist(), strict=True))


@given(st.text(max_size=300), st.text(max_size=100))
def test_any_text_gives_finite_numbers_of_one_size(text: str, tools: str) -> None:
    found = read(text, tools)
    assert found.shape.shape == (SHAPE_SIZE,)
    assert found.sketch.shape == (SKETCH_SIZE,)
    assert np.isfinite(found.shape).all()
    assert np.isfinite(found.sketch).all()
    assert np.array_equal(read(text, tools).shape, found.shape)


def test_options_numbers_and_marks_are_seen() -> None:
    found = named(QUESTION)
    assert round(found["options"] * 10) == 3
    assert found["percent"] == 1.0
    assert found["catch_all"] > 0
    assert found["decimals"] > 0
    assert named("Hello there.")["options"] == 0.0


def test_tool_schemas_count_only_where_there_are_tools() -> None:
    request = "Book a flight and a hotel, then a car.\n\n[TOOLS]\n"
    with_tools = named(request + '{"name": "a", "required": ["x", "y"]}\n{"name": "b"}')
    assert with_tools["tools"] == 1.0
    assert with_tools["required"] > 1.0
    assert with_tools["asked_parts"] > 0
    assert named("Book a flight.")["asked_parts"] == 0.0


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
