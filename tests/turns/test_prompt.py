"""Compaction on random histories: fits or refuses, pairs intact, deterministic, announced."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import PromptTooLong
from appliance.turns.prompt import Fitted, fit, in_words, most_tokens
from appliance.types import (
    ImageBlock,
    Message,
    Role,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolResultBlock,
    text_message,
)

NOTICE_CHARS = 160
"""The longest announcement of what was left out: it belongs to the least that must fit."""

SYSTEM = (text_message(Role.SYSTEM, "You are an agent."),)


def count(messages: Sequence[Message], chars_per_token: float) -> int:
    """A tokenizer of its own pace, unlike the estimate's."""
    total = 0
    for message in messages:
        total += 4
        for block in message.blocks:
            match block:
                case TextBlock(text=text):
                    total += int(len(text) / chars_per_token) + 1
                case ToolCallBlock(arguments=arguments):
                    total += 12 + int(len(str(dict(arguments))) / chars_per_token)
                case ThinkingBlock(text=text):
                    total += int(len(text) / chars_per_token)
                case ToolResultBlock(content=content):
                    total += sum(
                        900 if isinstance(p, ImageBlock) else int(len(p.text) / chars_per_token)
                        for p in content
                    )
                case ImageBlock():
                    total += 900
    return total


def run_fit(
    earlier: Sequence[Message],
    current: Sequence[Message],
    budget: int,
    pace: float,
    system: Sequence[Message] = SYSTEM,
) -> Fitted:
    asking = fit(system, earlier, current, budget)
    messages = next(asking)
    while True:
        try:
            messages = asking.send(count(messages, pace))
        except StopIteration as stop:
            fitted: Fitted = stop.value
            return fitted


IMAGE = ImageBlock("image/png", "AAAA")
"""Sizes are mostly ordinary, and now and then larger than any window here: one message, one
argument, one result, hundreds of calls at once."""


def sizes(ordinary: int) -> st.SearchStrategy[int]:
    return st.one_of(st.integers(0, ordinary), st.integers(0, ordinary), st.just(40_000))


@st.composite
def exchanges(draw: st.DrawFn, prefix: str) -> tuple[Message, ...]:
    """A question, steps of calls with their results, and perhaps a last answer."""
    messages = [text_message(Role.USER, "q" * max(draw(sizes(400)), 1))]
    if draw(st.booleans()) and prefix != "c":
        messages[0] = Message(Role.USER, (*messages[0].blocks, IMAGE))
    for step in range(draw(st.integers(0, 4))):
        many = draw(st.sampled_from((1, 1, 2, 3, 200)))
        ids = [f"{prefix}_{step}_{n}" for n in range(many)]
        argument = "a" * (draw(sizes(100)) if many < 200 else 20)
        thought = tuple(
            ThinkingBlock("t" * draw(sizes(500))) for _ in range(draw(st.integers(0, 1)))
        )
        calls = tuple(ToolCallBlock(i, "tool", {"a": argument}) for i in ids)
        shown = (IMAGE,) if draw(st.booleans()) else ()
        said = "r" * draw(sizes(6000) if many < 200 else st.integers(0, 50))
        results = tuple(ToolResultBlock(i, (TextBlock(said), *shown)) for i in ids)
        messages += [Message(Role.ASSISTANT, (*thought, *calls)), Message(Role.USER, results)]
    if draw(st.booleans()):
        messages.append(text_message(Role.ASSISTANT, "a" * max(draw(sizes(800)), 1)))
    return tuple(messages)


@st.composite
def histories(draw: st.DrawFn) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    earlier: tuple[Message, ...] = ()
    for number in range(draw(st.integers(0, 6))):
        earlier += draw(exchanges(f"e{number}"))
    return earlier, draw(exchanges("c"))


@settings(max_examples=150, deadline=None)
@given(histories(), st.integers(60, 6000), st.floats(1.5, 6.0))
def test_what_fits_fits_with_whole_pairs_and_the_question_kept(
    history: tuple[tuple[Message, ...], tuple[Message, ...]], budget: int, pace: float
) -> None:
    check_fit(history, budget, pace)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(histories(), st.integers(60, 6000), st.floats(1.5, 6.0))
def test_ten_thousand_histories(
    history: tuple[tuple[Message, ...], tuple[Message, ...]], budget: int, pace: float
) -> None:
    check_fit(history, budget, pace)


def check_fit(
    history: tuple[tuple[Message, ...], tuple[Message, ...]], budget: int, pace: float
) -> None:
    earlier, current = history
    try:
        fitted = run_fit(earlier, current, budget, pace)
    except PromptTooLong:
        alone = count((*SYSTEM, current[0]), pace) + int(NOTICE_CHARS / pace) + 1
        assert alone > budget, "refused although system, question and notice fit"
        return
    assert count(fitted.messages, pace) == fitted.prompt_tokens <= budget
    assert fitted.messages[0] == SYSTEM[0]
    assert current[0].text in "".join(m.text for m in fitted.messages)
    calls = [b.call_id for m in fitted.messages for b in m.blocks if isinstance(b, ToolCallBlock)]
    results = [
        b.call_id for m in fitted.messages for b in m.blocks if isinstance(b, ToolResultBlock)
    ]
    assert calls == results
    roles = [m.role for m in fitted.messages]
    assert Role.ASSISTANT not in roles[1:2]
    if fitted.is_compacted:
        assert any("Left out to fit" in m.text for m in fitted.messages)
    else:
        assert fitted.messages == (*SYSTEM, *earlier, *current)
    assert run_fit(earlier, current, budget, pace) == fitted


@pytest.mark.parametrize(
    ("system", "question"), [("s" * 4000, "q"), ("s", "q" * 4000)], ids=["system", "question"]
)
def test_what_is_never_cut_and_does_not_fit_is_refused(system: str, question: str) -> None:
    said = (text_message(Role.SYSTEM, system),)
    with pytest.raises(PromptTooLong):
        run_fit((), (text_message(Role.USER, question),), 100, 4.0, said)


@given(histories(), st.floats(1.0, 6.0))
def test_no_tokenizer_makes_more_of_a_history_than_the_most(
    history: tuple[tuple[Message, ...], tuple[Message, ...]], pace: float
) -> None:
    messages = (*history[0], *history[1])
    assert count(messages, pace) <= most_tokens(messages)


def test_images_are_said_in_words_to_a_model_that_reads_none() -> None:
    result = ToolResultBlock("c", (TextBlock("look:"), IMAGE))
    (said,) = in_words((Message(Role.USER, (result, IMAGE)),))
    assert "ImageBlock" not in repr(said)
    assert repr(said).count("[an image, image/png, that this model cannot read]") == 2


def test_a_question_that_alone_is_too_long_names_both_numbers() -> None:
    with pytest.raises(PromptTooLong, match=r"prompt is too long: \d+ tokens > 100 maximum"):
        run_fit((), (text_message(Role.USER, "x" * 4000),), 100, 4.0)


@pytest.mark.parametrize("growth", [80, 200])
def test_the_cut_stays_while_the_conversation_grows_by_a_stride(growth: int) -> None:
    """What is sent begins with what was sent the turn before, but when the cut moves."""
    budget, pace = 2000, 4.0
    earlier: tuple[Message, ...] = ()
    sent: tuple[Message, ...] = ()
    kept = 0
    turns = 60
    for number in range(turns):
        question = text_message(Role.USER, f"{number}" + "q" * growth)
        fitted = run_fit(earlier, (question,), budget, pace)
        kept += fitted.messages[: len(sent)] == sent
        sent = fitted.messages
        earlier += (question, text_message(Role.ASSISTANT, "a" * 4 * growth))
    tokens_a_turn = 5 * growth / pace
    cuts = turns * tokens_a_turn / (budget / 3)
    assert turns - kept <= 1.3 * cuts, "a stride is counted on the estimate's scale"


def test_the_cut_stays_while_one_turn_works_on_through_its_window() -> None:
    budget, pace, steps = 3000, 4.0, 40
    current: tuple[Message, ...] = (text_message(Role.USER, "work"),)
    sent: tuple[Message, ...] = ()
    kept = 0
    for number in range(steps):
        fitted = run_fit((), current, budget, pace)
        kept += fitted.messages[: len(sent)] == sent
        sent = fitted.messages
        call = ToolCallBlock(f"c{number}", "tool", {"a": number})
        result = ToolResultBlock(f"c{number}", (TextBlock("r" * 600),))
        current += (Message(Role.ASSISTANT, (call,)), Message(Role.USER, (result,)))
    assert kept >= 0.75 * steps
