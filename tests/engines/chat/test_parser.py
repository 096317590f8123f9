"""Output is read the same however it was cut up, and only whole calls come out."""

from __future__ import annotations

import json
from datetime import date
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.engines.chat.parser import OutputParser
from appliance.engines.chat.template import ChatTemplate
from appliance.engines.chat.turnplan import plan
from appliance.errors import EngineError
from appliance.types import (
    Delta,
    GenerateRequest,
    Message,
    Role,
    StopReason,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolCallBlock,
    ToolCallDelta,
    ToolSpec,
    text_message,
)
from tests.engines.chat.templates import CHANNELS, MARKED, TAGS, hermes

F = ToolSpec(
    "f",
    "",
    {
        "type": "object",
        "properties": {"a": {"type": "string"}, "n": {"type": "integer"}, "u": {}},
        "required": ["a"],
    },
)
SET = ToolSpec(
    "set",
    "",
    {
        "type": "object",
        "properties": {"ids": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}},
        "required": ["ids"],
    },
)
SAVE = ToolSpec(
    "save",
    "",
    {
        "type": "object",
        "properties": {"path": {"type": "string"}, "body": {"type": "string"}},
        "required": ["path", "body"],
    },
    raw_body="body",
)


def parser(
    template: ChatTemplate, *, thinking: bool = False, schema: object = None
) -> OutputParser:
    request = GenerateRequest(
        "r",
        (text_message(Role.USER, "Hi"),),
        (F, SET, SAVE) if schema is None else (),
        thinking=thinking,
        response_schema=schema,  # type: ignore[arg-type]
    )
    return plan(template, request, today=date(2026, 1, 1)).parser


def read(
    template: ChatTemplate, *pieces: str, reason: StopReason = StopReason.END_TURN
) -> tuple[list[Delta], Message, StopReason]:
    reader = parser(template)
    deltas = [delta for piece in pieces for delta in reader.feed(piece)]
    last, message, ended = reader.finish(reason)
    return deltas + last, message, ended


HERMES_CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "x}\\"", "n": 3}}\n</tool_call>'
SAMPLES = {
    "text": (hermes, "Just text with <b>tags</b> and < signs.\n"),
    "thought": (hermes, "<think>\nlet me see <tool_call>\n</think>\n\nAnswer."),
    "call": (hermes, "I will.\n" + HERMES_CALL),
    "two": (hermes, f"<think>a</think>{HERMES_CALL}\n{HERMES_CALL}"),
    "body": (
        hermes,
        '<tool_call>\n{"name": "save", "arguments": {"path": "a"}}\n</tool_call>\n'
        '<<<body\nline "1"\n\nbody>> no\nend\nbody>>>',
    ),
    "set": (hermes, '<tool_call>\n{"name": "set", "arguments": {"ids": [1, 2, 1]}}\n</tool_call>'),
    "tags": (
        lambda: ChatTemplate(TAGS, bos_token="", eos_token="<|im_end|>"),
        'Well.\n<tool_call>\n<function=f>\n<parameter=a>\nraw "text"\n</param\n</parameter>\n'
        "<parameter=u>\n[1, {}]\n</parameter>\n</function>\n</tool_call>",
    ),
    "marked": (
        lambda: ChatTemplate(MARKED, bos_token="<s>", eos_token="</s>"),
        '[CALLS]f[ID]abcdefghi[ARGS]{"a": "1"}[CALLS]f[ID]abcdefgh2[ARGS]{"a": "2"}',
    ),
    "channels": (
        lambda: ChatTemplate(CHANNELS, bos_token="", eos_token="<|return|>"),
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
        "<|channel|>commentary<|message|>I go.<|end|><|start|>assistant"
        '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": "1"}<|call|>',
    ),
    "answer": (
        lambda: ChatTemplate(CHANNELS, bos_token="", eos_token="<|return|>"),
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
        "<|channel|>final<|message|>Done.<|return|>",
    ),
}


def merged(deltas: list[Delta]) -> list[tuple[str, str]]:
    """Deltas of one kind and call joined."""
    found: list[tuple[str, str]] = []
    for delta in deltas:
        match delta:
            case TextDelta(text):
                key, piece = "text", text
            case ThinkingDelta(text):
                key, piece = "thinking", text
            case ToolCallDelta(call_id, name, arguments):
                key, piece = f"{call_id} {name}", arguments
            case _:
                raise AssertionError(delta)
        if found and found[-1][0] == key:
            found[-1] = (key, found[-1][1] + piece)
        else:
            found.append((key, piece))
    return found


@pytest.mark.parametrize("name", SAMPLES)
@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 400), max_size=12))
def test_where_the_stream_is_cut_changes_nothing(name: str, cuts: list[int]) -> None:
    make, text = SAMPLES[name]
    template = make()
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in pairwise(places)]
    whole, one, reason = read(template, text)
    deltas, other, other_reason = read(template, *pieces)
    assert one == other
    assert reason == other_reason
    assert merged(whole) == merged(deltas)
    for block in one.blocks:
        if isinstance(block, ToolCallBlock):
            said = "".join(
                d.arguments_json
                for d in deltas
                if isinstance(d, ToolCallDelta) and d.call_id == block.call_id
            )
            assert json.loads(said) == block.arguments


def test_thinking_text_and_calls_become_blocks_in_order() -> None:
    _, message, reason = read(
        hermes(), f"<think>\nhm\n</think>\n\nGo.\n{HERMES_CALL}\n{HERMES_CALL}"
    )
    assert message.blocks == (
        ThinkingBlock("hm"),
        TextBlock("Go."),
        ToolCallBlock("call_r_0", "f", {"a": 'x}"', "n": 3}),
        ToolCallBlock("call_r_1", "f", {"a": 'x}"', "n": 3}),
    )
    assert reason is StopReason.TOOL_USE


def test_a_raw_body_joins_the_arguments() -> None:
    _, message, _ = read(hermes(), SAMPLES["body"][1])
    assert message.tool_calls[0].arguments == {"path": "a", "body": 'line "1"\n\nbody>> no\nend'}


def test_tagged_strings_are_raw_and_the_rest_is_json() -> None:
    _, message, _ = read(SAMPLES["tags"][0](), SAMPLES["tags"][1])
    assert message.tool_calls[0].arguments == {"a": 'raw "text"\n</param', "u": [1, {}]}


def test_channels_are_thinking_text_and_call() -> None:
    _, message, _ = read(SAMPLES["channels"][0](), SAMPLES["channels"][1])
    assert [type(block) for block in message.blocks] == [ThinkingBlock, TextBlock, ToolCallBlock]
    _, message, _ = read(SAMPLES["answer"][0](), SAMPLES["answer"][1])
    assert message.text == "Done."


def test_a_set_loses_its_duplicates_and_is_shown_only_when_checked() -> None:
    deltas, message, _ = read(hermes(), SAMPLES["set"][1])
    assert message.tool_calls[0].arguments == {"ids": [1, 2]}
    assert deltas == [ToolCallDelta("call_r_0", "set", '{"ids": [1, 2]}')]


def test_a_call_cut_by_the_token_limit_is_not_in_the_message() -> None:
    _, message, reason = read(hermes(), HERMES_CALL[:40], reason=StopReason.MAX_TOKENS)
    assert message.tool_calls == ()
    assert reason is StopReason.MAX_TOKENS


def test_a_finished_call_before_a_cut_one_stays() -> None:
    text = f"{HERMES_CALL}\n{HERMES_CALL[:45]}"
    _, message, reason = read(hermes(), text, reason=StopReason.MAX_TOKENS)
    assert len(message.tool_calls) == 1
    assert reason is StopReason.MAX_TOKENS


def test_an_invalid_call_is_an_error_and_never_a_call() -> None:
    with pytest.raises(EngineError, match="breaks its schema"):
        read(hermes(), '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>')
    with pytest.raises(EngineError, match="unknown tool"):
        read(hermes(), '<tool_call>\n{"name": "rm", "arguments": {}}\n</tool_call>')


def test_an_answer_is_checked_against_the_schema_asked_for() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    reader = parser(hermes(), schema=schema)
    reader.feed('{"a": 1}')
    assert reader.finish(StopReason.END_TURN)[1].text == '{"a": 1}'
    reader = parser(hermes(), schema=schema)
    reader.feed('{"a": "x"}')
    with pytest.raises(EngineError, match="the answer breaks its schema"):
        reader.finish(StopReason.END_TURN)


def test_stop_strings_count_only_in_plain_text() -> None:
    reader = parser(hermes())
    assert reader.in_text
    reader.feed("Hello <tool_call>\n{")
    assert not reader.in_text
    reader.feed('"name": "f", "arguments": {"a": "x"}}\n</tool_call>')
    assert reader.in_text
