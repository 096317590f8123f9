"""A whole turn as one grammar takes what the parser reads as a valid turn, and nothing else."""

from __future__ import annotations

from datetime import date

import pytest
from llguidance import LLMatcher

from appliance.engines.chat.grammar import GrammarWriter
from appliance.engines.chat.template import ChatTemplate
from appliance.engines.chat.turnplan import ChatPlan, plan
from appliance.engines.chat.vocabulary import Vocabulary
from appliance.engines.chat.wholeturn import whole_turn
from appliance.errors import EngineError
from appliance.types import (
    GenerateRequest,
    Json,
    Role,
    StopReason,
    ToolCallBlock,
    ToolChoice,
    ToolChoiceKind,
    ToolSpec,
    text_message,
)
from tests.engines.chat.templates import real_template

TAGGED = """\
{%- if tools %}{{ '<|im_start|>system\\nTools:\\n' }}{% for tool in tools %}{{ tool.function.name }}
{{ tool.function.parameters | tojson }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif -%}
{%- for m in messages -%}
{{ '<|im_start|>' + m.role + '\\n' }}{% if m.content %}{{ m.content }}{% endif %}
{%- for call in m.tool_calls or [] %}
{{- '\\n<tool_call>\\n<function=' + call.function.name + '>\\n' }}
{%- for key, value in call.function.arguments | items %}
{{- '<parameter=' + key + '>\\n' }}
{{- value if value is string else value | tojson }}{{ '\\n</parameter>\\n' }}{% endfor %}
{{- '</function>\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
WEATHER = ToolSpec(
    "weather",
    "Tells the weather.",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
)
SAVE = ToolSpec(
    "save",
    "Saves a file.",
    {
        "type": "object",
        "properties": {"path": {"type": "string"}, "content": {"type": "string"}},
        "required": ["path", "content"],
    },
    raw_body="content",
)
ANSWER: dict[str, Json] = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
}
HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TWO = (
    HERMES
    + '\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rom", "days": 2}}\n</tool_call>'
)
RAW = (
    '<tool_call>\n{"name": "save", "arguments": {"path": "a"}}\n</tool_call>'
    '\n<<<content\n"x" }\ncontent>>>'
)


def planned(source: str, kind: ToolChoiceKind, schema: dict[str, Json] | None = None) -> ChatPlan:
    template = ChatTemplate(source, bos_token="", eos_token="<|im_end|>")
    request = GenerateRequest(
        "r",
        (text_message(Role.USER, "how is it?"),),
        () if schema is not None else (WEATHER, SAVE),
        ToolChoice(kind, name="weather"),
        schema,
    )
    return plan(template, request, today=date(2026, 1, 1))


def is_whole(turn: ChatPlan, text: str, controls: tuple[str, ...] = ()) -> bool:
    """Whether the grammar takes the text to its end, and may end there. `controls` are tokens of
    their own, and no text."""
    assert turn.constraint is not None
    marks = [mark.encode() for mark in controls]
    vocabulary = Vocabulary(
        [*(bytes([byte]) for byte in range(256)), b"<end>", *marks],
        [256],
        range(256, 257 + len(marks)),
    )
    grammar = whole_turn(turn.constraint, GrammarWriter(vocabulary.special))
    matcher = LLMatcher(vocabulary.library, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = vocabulary.encode_with_controls(text)
    assert tokens is not None
    return matcher.validate_tokens(tokens) == len(tokens) and bool(
        matcher.consume_tokens(tokens) and matcher.is_accepting()
    )


def calls(turn: ChatPlan, text: str) -> list[ToolCallBlock]:
    turn.parser.feed(text)
    _, message, _ = turn.parser.finish(StopReason.END_TURN)
    return [block for block in message.blocks if isinstance(block, ToolCallBlock)]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("It is warm.", []),
        ("<tool is not a call", []),
        (HERMES, ["weather"]),
        ("Let me look. " + HERMES, ["weather"]),
        (TWO, ["weather", "weather"]),
        (RAW, ["save"]),
    ],
)
def test_free_text_turns_into_a_call_only_as_a_valid_one(text: str, names: list[str]) -> None:
    turn = planned("", ToolChoiceKind.AUTO)
    assert is_whole(turn, text)
    assert [call.name for call in calls(turn, text)] == names


@pytest.mark.parametrize(
    "text",
    [
        HERMES.replace("weather", "whether"),
        HERMES.replace('"Paris"', "7"),
        HERMES.replace('{"city": "Paris"}', "{}"),
        HERMES[:-14],
        "<tool_call> or not",
    ],
)
def test_no_turn_holds_an_invalid_call(text: str) -> None:
    turn = planned("", ToolChoiceKind.AUTO)
    assert not is_whole(turn, text)


def test_what_is_demanded_comes() -> None:
    demanded = planned("", ToolChoiceKind.ANY)
    assert is_whole(demanded, HERMES)
    assert is_whole(demanded, RAW)
    assert not is_whole(demanded, "It is warm.")
    named = planned("", ToolChoiceKind.NAMED)
    assert is_whole(named, HERMES)
    assert not is_whole(named, RAW)


def test_an_answer_keeps_its_schema() -> None:
    turn = planned("", ToolChoiceKind.AUTO, ANSWER)
    assert is_whole(turn, '{"ok": true}')
    assert not is_whole(turn, '{"ok": 1}')


def test_arguments_in_tags_of_several_tools_stand_in_one_grammar() -> None:
    turn = planned(TAGGED, ToolChoiceKind.AUTO)
    text = (
        "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
    )
    assert is_whole(turn, text)
    (call,) = calls(turn, text)
    assert call.arguments == {"city": "Paris", "days": 3}
    assert not is_whole(turn, text.replace("\n3\n", "\nthree\n"))


def test_a_turn_whose_call_the_parser_refuses_is_refused_by_the_grammar_too() -> None:
    turn = planned("", ToolChoiceKind.AUTO)
    with pytest.raises(EngineError):
        calls(turn, HERMES.replace('"Paris"', "7"))


HARMONY = ("<|channel|>", "<|message|>", "<|constrain|>", "<|start|>", "<|end|>", "<|call|>")
THOUGHT = "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant"
CALL = (
    '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Rom"}<|call|>'
)
THINK = ("<think>", "</think>", "<tool_call>", "</tool_call>")


def planned_for(name: str, kind: ToolChoiceKind = ToolChoiceKind.AUTO) -> ChatPlan:
    request = GenerateRequest(
        "r", (text_message(Role.USER, "how is it?"),), (WEATHER, SAVE), ToolChoice(kind)
    )
    return plan(real_template(name), request, today=date(2026, 1, 1))


@pytest.mark.parametrize(
    ("text", "is_good"),
    [
        ("<|channel|>final<|message|>It is warm.", True),
        (THOUGHT + "<|channel|>final<|message|>It is warm.", True),
        (CALL, True),
        (THOUGHT + CALL, True),
        (THOUGHT + THOUGHT + CALL, True),
        (THOUGHT + CALL.replace('"Rom"', "7"), False),
        (THOUGHT + CALL.replace("weather", "whether"), False),
        ("It is warm.", False),
        (THOUGHT, False),
    ],
)
def test_harmonys_channels_are_kept_when_a_call_is_free(text: str, is_good: bool) -> None:
    turn = planned_for("openai-gpt-oss-120b")
    assert is_whole(turn, text, HARMONY) == is_good
    if is_good:
        assert len(calls(turn, text)) == text.count("<|call|>")


@pytest.mark.parametrize(
    ("text", "is_good"),
    [
        ("It is warm.", True),
        ("<think>\nwell\n</think>\n\nIt is warm.", True),
        ("<think>\nwell\n</think>\n\n" + HERMES, True),
        ("<think>\nwell\n</think>\n\n" + HERMES.replace('"Paris"', "7"), False),
        (HERMES.replace('"Paris"', "7"), False),
    ],
)
def test_thoughts_between_control_tokens_come_before_a_free_call(text: str, is_good: bool) -> None:
    assert is_whole(planned_for("Qwen-Qwen3-0.6B"), text, THINK) == is_good


def test_a_mark_that_is_a_control_token_leaves_the_call_constrained() -> None:
    turn = planned_for("meta-llama-Llama-3.1-8B-Instruct")
    call = '{"name": "weather", "parameters": {"city": "Rom"}}'
    assert is_whole(turn, call, ("<|python_tag|>",))
    assert is_whole(turn, "It is warm.", ("<|python_tag|>",))
    assert not is_whole(turn, call.replace('"Rom"', "7"), ("<|python_tag|>",))
