"""The constraint lets text be text, calls be calls, and closes them before the tokens run out."""

from __future__ import annotations

import random
import time
from datetime import date

import numpy as np
import pytest

from appliance.engines.chat.constraint import Constraint, ConstraintFactory
from appliance.engines.chat.turnplan import ChatPlan, plan
from appliance.errors import BadRequest
from appliance.types import (
    GenerateRequest,
    Role,
    StopReason,
    ThinkingBlock,
    ToolChoice,
    ToolChoiceKind,
    ToolSpec,
    text_message,
)
from tests.engines.chat.samplers import Answer, answer
from tests.engines.chat.templates import hermes
from tests.engines.chat.vocab import SHARED, RealVocab, real_vocab

PATH = SHARED / "vocab" / "ggml-vocab-qwen2.gguf"
MARKS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
ANY = ToolChoice(ToolChoiceKind.ANY)
F = ToolSpec(
    "get_weather",
    "",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
)
G = ToolSpec("stop", "", {"type": "object", "properties": {}})
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


@pytest.fixture(scope="module")
def vocab() -> RealVocab:
    if not PATH.is_file():
        pytest.skip("the real vocabularies are not here (../shared/vocab)")
    return real_vocab(PATH, MARKS)


@pytest.fixture(scope="module")
def factory(vocab: RealVocab) -> ConstraintFactory:
    return vocab.factory()


def planned(*tools: ToolSpec, **changes: object) -> ChatPlan:
    fields: dict[str, object] = {
        "request_id": "r",
        "messages": (text_message(Role.USER, "Hi"),),
        "tools": tools,
        **changes,
    }
    return plan(hermes(), GenerateRequest(**fields), today=date(2026, 1, 1))  # type: ignore[arg-type]


def tokens_of(vocab: RealVocab, text: str) -> list[int]:
    """One token for each mark, greedy pieces for the rest."""
    by_bytes = {piece: token for token, piece in reversed(list(enumerate(vocab.tokens)))}
    data, found = text.encode(), []
    while data:
        size = next(n for n in range(min(len(data), 24), 0, -1) if data[:n] in by_bytes)
        found.append(by_bytes[data[:size]])
        data = data[size:]
    return found


def follow(constraint: Constraint, tokens: list[int]) -> int:
    """How many of the tokens were allowed, one after the other."""
    for count, token in enumerate(tokens):
        if not constraint.check(token):
            return count
        constraint.accept(token)
    return len(tokens)


def babble(
    factory: ConstraintFactory, vocab: RealVocab, made: ChatPlan, max_tokens: int, seed: int = 0
) -> Answer:
    assert made.constraint is not None
    constraint = factory.compile(made.constraint, max_tokens=max_tokens)
    return answer(made, vocab, constraint, random.Random(seed), max_tokens)


def test_text_is_free_until_a_call_begins(factory: ConstraintFactory, vocab: RealVocab) -> None:
    made = planned(F, G)
    assert made.constraint is not None
    constraint = factory.compile(made.constraint, max_tokens=500)
    text = 'Free {"name": text} of all sorts, <b>tags</b> & "quotes".\n'
    assert follow(constraint, tokens_of(vocab, text)) == len(tokens_of(vocab, text))
    assert constraint.check(vocab.end_ids[0])
    good = tokens_of(
        vocab, '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    )
    assert follow(constraint, good) == len(good)
    assert constraint.check(vocab.end_ids[0])


@pytest.mark.parametrize(
    "wrong",
    [
        '<tool_call>\n{"name": "rm"',
        '<tool_call>\n{"name": "get_weather", "arguments": {"town"',
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": 1',
        '<tool_call>\n{"name": "get_weather", "arguments": {}',
    ],
)
def test_a_wrong_call_is_refused_at_the_first_wrong_token(
    factory: ConstraintFactory, vocab: RealVocab, wrong: str
) -> None:
    made = planned(F, G)
    assert made.constraint is not None
    constraint = factory.compile(made.constraint, max_tokens=500)
    tokens = tokens_of(vocab, wrong)
    assert 3 <= follow(constraint, tokens) < len(tokens)


def test_a_trigger_spelt_in_letters_counts_too_even_inside_a_token(
    factory: ConstraintFactory, vocab: RealVocab
) -> None:
    made = planned(F)
    assert made.constraint is not None
    spelt = [vocab.tokens.index(bytes([byte])) for byte in b"<tool_call"]
    constraint = factory.compile(made.constraint, max_tokens=5000)
    assert follow(constraint, spelt) == len(spelt)
    straddling = [
        token for token, piece in enumerate(vocab.tokens) if piece in (b">\n", b">{", b">x")
    ]
    allowed = {vocab.tokens[token] for token in straddling if constraint.check(token)}
    assert allowed == {b">\n"}
    mask = np.unpackbits(constraint.mask().view(np.uint8), bitorder="little")
    assert {vocab.tokens[token] for token in straddling if mask[token]} == {b">\n"}


def test_a_demanded_call_comes_first_and_only_the_named_one(
    factory: ConstraintFactory, vocab: RealVocab
) -> None:
    for seed in range(5):
        made = planned(F, G, tool_choice=ToolChoice(ToolChoiceKind.NAMED, "stop"))
        result = babble(factory, vocab, made, 200, seed)
        assert {call.name for call in result.message.tool_calls} == {"stop"}
        assert result.text.startswith("<tool_call>")


def test_one_call_a_turn_where_parallel_calls_are_off(
    factory: ConstraintFactory, vocab: RealVocab
) -> None:
    made = planned(G, tool_choice=ToolChoice(ToolChoiceKind.ANY, parallel=False))
    result = babble(factory, vocab, made, 400)
    assert len(result.message.tool_calls) == 1
    assert result.reason is StopReason.TOOL_USE


def test_calls_of_one_turn_are_bounded(factory: ConstraintFactory, vocab: RealVocab) -> None:
    made = planned(G, tool_choice=ANY)
    assert made.constraint is not None
    constraint = factory.compile(made.constraint, max_tokens=5000)
    first = tokens_of(vocab, '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>')
    more = tokens_of(vocab, '\n<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>')
    assert follow(constraint, first) == len(first)
    calls = 1
    while follow(constraint, more) == len(more):
        calls += 1
    assert calls == 16


@pytest.mark.parametrize("max_tokens", [40, 60, 100, 300])
def test_a_demanded_call_closes_within_any_budget(
    factory: ConstraintFactory, vocab: RealVocab, max_tokens: int
) -> None:
    for seed in range(4):
        result = babble(factory, vocab, planned(F, SAVE, tool_choice=ANY), max_tokens, seed)
        assert result.tokens <= max_tokens
        assert result.message.tool_calls


def test_a_budget_too_small_for_the_demanded_call_is_refused(factory: ConstraintFactory) -> None:
    made = planned(SAVE, tool_choice=ANY)
    assert made.constraint is not None
    with pytest.raises(BadRequest, match="too small"):
        factory.compile(made.constraint, max_tokens=8)


def test_a_call_that_cannot_end_is_not_begun(factory: ConstraintFactory, vocab: RealVocab) -> None:
    made = planned(F)
    assert made.constraint is not None
    trigger = tokens_of(vocab, "<tool_call>")[0]
    assert not factory.compile(made.constraint, max_tokens=10).check(trigger)
    assert factory.compile(made.constraint, max_tokens=100).check(trigger)


def test_reasoning_comes_before_a_demanded_call_and_ends_in_time(
    factory: ConstraintFactory, vocab: RealVocab
) -> None:
    made = planned(F, tool_choice=ANY, thinking=True)
    assert made.constraint is not None
    constraint = factory.compile(made.constraint, max_tokens=120)
    opening = tokens_of(vocab, "<think>")
    assert follow(constraint, opening) == 1
    result = answer(made, vocab, constraint, random.Random(3), 119)
    made.parser.feed("")
    assert result.tokens <= 119
    assert "</think>" in result.text
    assert "<tool_call>" in result.text
    assert constraint.is_complete


def test_an_answer_by_schema_is_valid_and_ends(
    factory: ConstraintFactory, vocab: RealVocab
) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "why": {"type": "string"}},
        "required": ["ok", "why"],
    }
    for seed in range(8):
        result = babble(factory, vocab, planned(response_schema=schema), 60, seed)
        assert result.message.text.startswith('{"ok": ')
        assert result.reason is StopReason.END_TURN


def test_beside_tools_an_answer_by_schema_is_one_or_the_other(
    factory: ConstraintFactory, vocab: RealVocab
) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    made = planned(G, response_schema=schema)
    assert made.constraint is not None
    for text in ('{"ok": true}', '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'):
        constraint = factory.compile(made.constraint, max_tokens=100)
        tokens = tokens_of(vocab, text)
        assert follow(constraint, tokens) == len(tokens)
        assert constraint.check(vocab.end_ids[0])
    assert follow(factory.compile(made.constraint, max_tokens=100), tokens_of(vocab, "Hello")) == 0


def test_a_raw_body_is_free_to_its_sentinel_line(
    factory: ConstraintFactory, vocab: RealVocab
) -> None:
    made = planned(SAVE, tool_choice=ANY)
    assert made.constraint is not None
    assert "Leave body out of the JSON" in made.prompt
    constraint = factory.compile(made.constraint, max_tokens=400)
    text = (
        '<tool_call>\n{"name": "save", "arguments": {"path": "a.py"}}\n</tool_call>\n'
        '<<<body\nprint("{")\n\n# <b> \\ \nbody>>>'
    )
    tokens = tokens_of(vocab, text)
    assert follow(constraint, tokens) == len(tokens)
    assert constraint.is_complete


def test_the_mask_and_the_check_agree(factory: ConstraintFactory, vocab: RealVocab) -> None:
    made = planned(F, G, tool_choice=ANY)
    assert made.constraint is not None
    arguments = '{"city": "Rome", "days": 3}'
    text = f'<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>'
    constraint = factory.compile(made.constraint, max_tokens=4000)
    rng = random.Random(5)
    for token in tokens_of(vocab, text):
        mask = np.unpackbits(constraint.mask().view(np.uint8), bitorder="little")
        assert mask[token]
        for other in rng.sample(range(len(vocab.tokens)), 200):
            assert bool(mask[other]) == constraint.check(other)
        constraint.accept(token)


def test_a_hundred_tools_of_a_kilobyte_cost_a_hundred_names(
    factory: ConstraintFactory, vocab: RealVocab
) -> None:
    def tool(number: int) -> ToolSpec:
        properties = {
            f"field_{number}_{index}": {"type": "string", "description": "what it is for " * 3}
            for index in range(12)
        }
        return ToolSpec(f"tool_{number}", "", {"type": "object", "properties": properties})

    tools = tuple(tool(number) for number in range(100))
    started = time.perf_counter()
    result = babble(factory, vocab, planned(*tools, tool_choice=ANY), 300)
    assert time.perf_counter() - started < 60, "a hundred schemas are not compiled at each token"
    assert result.message.tool_calls


def test_thinking_is_a_block_of_its_own(factory: ConstraintFactory, vocab: RealVocab) -> None:
    made = planned(F)
    deltas = made.parser.feed("<think>hm</think>Hello")
    _, message, _ = made.parser.finish(StopReason.END_TURN)
    assert message.blocks[0] == ThinkingBlock("hm")
    assert message.text == "Hello"
    assert len(deltas) == 2
