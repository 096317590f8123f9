"""Translation to and from Anthropic's JSON, judged by a validator written apart from it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.config.models import ClaudeModel
from appliance.engines.claude.request import CACHE_MIN_CHARS, messages_body
from appliance.types import (
    GenerateRequest,
    Json,
    Message,
    Role,
    Sampling,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolChoice,
    ToolChoiceKind,
    ToolResultBlock,
    ToolSpec,
    text_message,
)
from appliance.wire.anthropic import (
    content_to_json,
    messages_from_json,
    tool_choice_from_json,
    tool_name,
    tools_from_json,
    tools_to_json,
)
from appliance.wire.anthropic_history import history_to_json
from tests.fakes.claude.strict import violation
from tests.wire.histories import SIGNATURE, histories, messages

MODEL = ClaudeModel(engine="claude", model="claude-stand-in")
TOOLS = (
    ToolSpec("read_file", "Reads.", {"type": "object", "properties": {}, "required": []}),
    ToolSpec("mcp.git.log", "Logs.", {"properties": {"n": {"type": "integer", "minimum": 1}}}),
    ToolSpec(
        "strict",
        "Fits strict decoding.",
        {
            "type": "object",
            "properties": {"path": {"type": "string"}},
            "required": ["path"],
            "additionalProperties": False,
        },
    ),
)


def body_of(history: tuple[Message, ...], **more: object) -> dict[str, Json]:
    request = GenerateRequest("r", history, **more)  # type: ignore[arg-type]
    return messages_body(request, MODEL)


@settings(max_examples=250, deadline=None)
@given(histories, st.booleans(), st.booleans())
def test_no_history_moved_to_claude_is_refused_by_strict_validation(
    history: tuple[Message, ...], thinking: bool, with_tools: bool
) -> None:
    check_accepted(history, thinking, with_tools)


@pytest.mark.slow
@settings(max_examples=5_000, deadline=None)
@given(histories, st.booleans(), st.booleans())
def test_no_history_of_five_thousand_is_refused(
    history: tuple[Message, ...], thinking: bool, with_tools: bool
) -> None:
    check_accepted(history, thinking, with_tools)


def check_accepted(history: tuple[Message, ...], thinking: bool, with_tools: bool) -> None:
    body = body_of(history, thinking=thinking, tools=TOOLS if with_tools else ())
    assert violation(body, {SIGNATURE}) is None
    json.dumps(body, ensure_ascii=False).encode()


@settings(max_examples=200, deadline=None)
@given(histories, messages, messages)
def test_a_history_that_grows_keeps_the_prefix_that_was_cached(
    history: tuple[Message, ...], answer: Message, question: Message
) -> None:
    """Up to the place where neighbours merge, what was sent once is sent again byte for byte."""
    before = history_to_json(history)
    after = history_to_json((*history, answer, question))
    settled = len(before.messages) - 1
    assert after.system == before.system
    assert after.messages[:settled] == before.messages[:settled]


@settings(max_examples=200, deadline=None)
@given(histories)
def test_every_result_that_has_its_call_stays_beside_it(history: tuple[Message, ...]) -> None:
    body = history_to_json(history)
    for before, after in zip(body.messages, body.messages[1:], strict=False):
        called = [part["id"] for part in before["content"] if part["type"] == "tool_use"]
        answered = [p["tool_use_id"] for p in after["content"] if p["type"] == "tool_result"]
        assert called == answered


def test_thinking_goes_back_only_to_who_signed_it() -> None:
    own = ThinkingBlock("mine", SIGNATURE, "anthropic")
    foreign = ThinkingBlock("theirs", "other-signature", "other")
    answer = Message(Role.ASSISTANT, (own, foreign, TextBlock("Yes.")))
    sent = json.dumps(body_of((text_message(Role.USER, "a"), answer, text_message(Role.USER, "b"))))
    assert "mine" in sent
    assert "theirs" not in sent
    assert "other-signature" not in sent


def test_a_tool_loop_that_a_local_model_began_goes_on_without_thinking() -> None:
    history = (
        text_message(Role.USER, "Look."),
        Message(Role.ASSISTANT, (ToolCallBlock("call_1", "read_file", {}),)),
        Message(Role.USER, (ToolResultBlock("call_1", (TextBlock("ok"),)),)),
    )
    assert "thinking" not in body_of(history, thinking=True, tools=TOOLS)
    assert "thinking" in body_of((text_message(Role.USER, "Look."),), thinking=True)


def test_strict_is_asked_for_only_where_the_schema_permits() -> None:
    found = {tool["name"]: tool.get("strict", False) for tool in tools_to_json(TOOLS)}
    assert found == {"read_file": False, tool_name("mcp.git.log"): False, "strict": True}


def test_a_demanded_call_is_only_asked_of_a_model_that_refuses_demands() -> None:
    choice = ToolChoice(ToolChoiceKind.NAMED, "read_file", parallel=False)
    body = body_of((text_message(Role.USER, "a"),), tools=TOOLS, tool_choice=choice)
    assert body["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}


def test_sampling_is_left_out_for_models_that_refuse_it() -> None:
    sampling = Sampling(temperature=0.5, top_k=3, max_tokens=10)
    body = body_of((text_message(Role.USER, "a"),), sampling=sampling)
    assert body["max_tokens"] == 10
    assert "temperature" not in body


def test_at_most_four_places_are_marked_and_short_prompts_none() -> None:
    long = "word " * CACHE_MIN_CHARS
    turns = [text_message(Role.USER, f"{n} {long}") for n in range(3)]
    answers = [text_message(Role.ASSISTANT, "Yes.")] * 3
    history = [message for pair in zip(turns, answers, strict=True) for message in pair]
    system = text_message(Role.SYSTEM, long)
    marked = json.dumps(body_of((system, *history, turns[0]), tools=TOOLS)).count("cache_control")
    assert marked == 3
    assert "cache_control" not in json.dumps(body_of((text_message(Role.USER, "short"),)))


@settings(max_examples=200, deadline=None)
@given(histories)
def test_what_we_say_in_this_dialect_we_also_understand(history: tuple[Message, ...]) -> None:
    body = history_to_json(history)
    understood = messages_from_json(list(body.system), list(body.messages))
    again = history_to_json(understood)
    assert again.messages == body.messages
    assert again.system == body.system


def test_a_clients_split_tool_call_is_mended() -> None:
    content = [
        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}},
        {"type": "tool_use", "input": '{"a": 1}'},
    ]
    (message,) = messages_from_json(None, [{"role": "assistant", "content": content}])
    assert [call.arguments for call in message.tool_calls] == [{"a": 1}]


def test_tools_and_choices_are_read_and_server_tools_left_out() -> None:
    tools = tools_from_json(
        [
            {"name": "f", "description": "d", "input_schema": {"type": "object"}},
            {"type": "web_search_20250305", "name": "web_search"},
        ]
    )
    assert [tool.name for tool in tools] == ["f"]
    named = tool_choice_from_json({"type": "tool", "name": "f", "disable_parallel_tool_use": True})
    assert named == ToolChoice(ToolChoiceKind.NAMED, "f", parallel=False)


def test_an_answer_is_written_as_content_blocks() -> None:
    blocks = (TextBlock("a"), ToolCallBlock("call_1", "f", {"x": 1}))
    assert content_to_json(blocks) == [
        {"type": "text", "text": "a"},
        {"type": "tool_use", "id": "call_1", "name": "f", "input": {"x": 1}},
    ]
