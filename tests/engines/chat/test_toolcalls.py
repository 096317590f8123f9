"""Whatever the schema and whatever the model: every call that comes out is valid."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import date

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from appliance.engines.chat.closing import Hints, way_out
from appliance.engines.chat.constraint import ConstraintFactory
from appliance.engines.chat.patterns import example_of_pattern
from appliance.engines.chat.schema import Fitted, fitted
from appliance.engines.chat.spec import ConstraintSpec
from appliance.engines.chat.turnplan import plan
from appliance.engines.chat.vocabulary import Vocabulary
from appliance.types import (
    GenerateRequest,
    Json,
    Role,
    ToolChoice,
    ToolChoiceKind,
    ToolSpec,
    text_message,
)
from tests.engines.chat.random_schemas import random_tool_schema
from tests.engines.chat.samplers import answer, draw_tokens
from tests.engines.chat.templates import REAL, hermes, real_template
from tests.engines.chat.vocab import SHARED, RealVocab, real_vocab

PATH = SHARED / "vocab" / "ggml-vocab-qwen2.gguf"
_BYTES = Vocabulary([*(bytes([byte]) for byte in range(256)), b"<end>"], [256], [256])
MARKS = ("<tool_call>", "</tool_call>", "<think>", "</think>")


@pytest.fixture(scope="module")
def vocab() -> RealVocab:
    if not PATH.is_file():
        pytest.skip("the real vocabularies are not here (../shared/vocab)")
    return real_vocab(PATH, MARKS)


@pytest.fixture(scope="module")
def factory(vocab: RealVocab) -> ConstraintFactory:
    return vocab.factory()


def check_turn(factory: ConstraintFactory, vocab: RealVocab, seed: int, template=None) -> None:  # type: ignore[no-untyped-def]
    rng = random.Random(seed)
    schema = random_tool_schema(rng)
    max_tokens = rng.choice((300, 500, 900))
    for arguments in demanded_call(factory, vocab, rng, schema, max_tokens, template):
        jsonschema.Draft202012Validator(schema).validate(arguments)


def demanded_call(  # type: ignore[no-untyped-def]
    factory: ConstraintFactory,
    vocab: RealVocab,
    rng: random.Random,
    schema: dict[str, object],
    max_tokens: int,
    template=None,
    *,
    parallel: bool = True,
) -> list[dict[str, object]]:
    """The arguments of the calls that random tokens make of a demand for one."""
    request = GenerateRequest(
        "r",
        (text_message(Role.USER, "Hi"),),
        (ToolSpec("tool_x", "", schema),),
        tool_choice=ToolChoice(ToolChoiceKind.ANY, parallel=parallel),
    )
    made = plan(template or hermes(), request, today=date(2026, 1, 1))
    assert made.constraint is not None
    constraint = factory.compile(made.constraint, max_tokens=max_tokens)
    result = answer(made, vocab, constraint, rng, max_tokens)
    calls = result.message.tool_calls
    assert calls, (schema, result.text[-300:])
    return [dict(call.arguments) for call in calls]


def planned_call(schema: Mapping[str, Json], *others: ToolSpec) -> ConstraintSpec:
    request = GenerateRequest(
        "r",
        (text_message(Role.USER, "Hi"),),
        (ToolSpec("tool_x", "", schema), *others),
        tool_choice=ToolChoice(ToolChoiceKind.ANY),
    )
    made = plan(hermes(), request, today=date(2026, 1, 1))
    assert made.constraint is not None
    return made.constraint


def test_calls_by_random_tokens_under_random_schemas_are_valid(
    factory: ConstraintFactory, vocab: RealVocab
) -> None:
    for seed in range(25):
        check_turn(factory, vocab, seed)


@pytest.mark.parametrize("name", [real.file for real in REAL])
def test_calls_in_every_native_format_are_valid(
    factory: ConstraintFactory, vocab: RealVocab, name: str
) -> None:
    template = real_template(name)
    for seed in range(1000, 1004):
        check_turn(factory, vocab, seed, template)


def test_seeds_that_once_failed_are_valid(factory: ConstraintFactory, vocab: RealVocab) -> None:
    for seed in (100_700, 101_705, 101_906, 105_113, 106_644, 300_645):
        check_turn(factory, vocab, seed)


def test_the_first_letter_of_a_key_may_cost_what_the_key_demands(
    factory: ConstraintFactory, vocab: RealVocab
) -> None:
    schema = {
        "type": "object",
        "properties": {
            "free": {"type": "string"},
            "user id": {"const": {"list": [[1], [2], [3], [4], [5], [6], [7], [8]]}},
            "mode": {"type": "string"},
        },
        "required": ["free", "mode"],
    }
    user = vocab.tokens.index(b"user")
    made = planned_call(schema)
    for max_tokens in range(36, 80):
        constraint = factory.compile(made, max_tokens=max_tokens)
        tokens, _ = draw_tokens(constraint, vocab, random.Random(1), max_tokens, None, (user,))
        assert constraint.is_complete, (max_tokens, b"".join(vocab.tokens[t] for t in tokens))


def test_a_tool_is_called_only_where_its_smallest_call_fits(
    factory: ConstraintFactory, vocab: RealVocab
) -> None:
    small = ToolSpec("stop", "", {"type": "object", "properties": {}})
    keys = [f"field_{number}" for number in range(30)]
    parts = {key: {"type": "string"} for key in keys}
    schema = {"type": "object", "properties": parts, "required": keys}
    made = planned_call(schema, small)
    for seed in range(12):
        constraint = factory.compile(made, max_tokens=100)
        draw_tokens(constraint, vocab, random.Random(seed), 100)
        assert constraint.is_complete


def test_the_seed_that_ran_out_of_tokens_at_a_key(
    factory: ConstraintFactory, vocab: RealVocab
) -> None:
    rng = random.Random(308_730)
    schema = random_tool_schema(rng)
    assert demanded_call(factory, vocab, rng, schema, rng.choice((200, 400, 800)))


@pytest.mark.slow
def test_ten_thousand_calls_are_valid(factory: ConstraintFactory, vocab: RealVocab) -> None:
    for seed in range(10_000, 20_000):
        check_turn(factory, vocab, seed)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"not": {"pattern": "x"}}}},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(?=x)x"}}},
        {"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}},
        {"type": "object", "properties": {"a": {"oneOf": [{"type": "integer"}, {"minimum": 3}]}}},
        {"$ref": "https://example.invalid/schema"},
    ],
)
def test_what_no_grammar_can_keep_is_marked_to_be_checked(schema: dict[str, object]) -> None:
    assert fitted(schema).rule
    assert not fitted(schema).is_exact


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "string", "format": "made-up"}}},
        {"type": "object", "properties": {"a": {}}, "x-order": 3, "title": "T", "minProperties": 1},
        {"type": "object", "dependentRequired": {"a": ["b"]}, "properties": {"a": {}, "b": {}}},
        {"type": "object", "properties": {"a": {"type": "number", "multipleOf": 0.01}}},
    ],
)
def test_what_can_be_said_more_narrowly_stays_exact(schema: dict[str, object]) -> None:
    assert fitted(schema).is_exact


def test_a_decimal_step_between_two_whole_numbers_is_listed_number_by_number() -> None:
    part = {"type": "number", "exclusiveMinimum": 3, "maximum": 3.5, "multipleOf": 0.1}
    found = fitted({"type": "object", "properties": {"a": part}, "required": ["a"]})
    assert found.is_exact
    assert found.schema["properties"]["a"] == {"enum": [3.1, 3.2, 3.4, 3.5]}


@pytest.mark.parametrize(
    "part",
    [
        True,
        {},
        {"minimum": 3},
        {"type": "array"},
        {"type": "array", "prefixItems": [{}]},
        {"type": "object", "additionalProperties": True},
        {"oneOf": [{"type": "array", "maxItems": 2}, {"type": "null"}]},
    ],
)
def test_a_number_cannot_grow_to_infinity_where_the_type_is_open(part: object) -> None:
    found = fitted({"type": "object", "properties": {"a": part}, "required": ["a"]})
    assert found.is_exact
    for endless in ("-1E+062857406", "[1e999]", '{"b": 1e999}', '{"b": [[2E400]]}'):
        assert not could_say(found, f'{{"a": {endless}')


def test_what_no_grammar_fits_keeps_its_names_and_what_is_required() -> None:
    empty = {"type": "integer", "minimum": 3, "maximum": 2}
    schema = {
        "type": "object",
        "properties": {"a": empty, "b": {"type": "boolean"}},
        "required": ["a", "b"],
    }
    found = fitted(schema)
    assert not found.is_exact
    assert found.schema["required"] == ["a", "b"]
    assert could_say(found, '{"a": 3, "b": true}')
    assert not could_say(found, '{"b"')


def could_say(found: Fitted, text: str) -> bool:
    """Whether the grammar allows an answer that begins like this."""
    matcher = LLMatcher(_BYTES.library, f"start: answer\nanswer: %json {found.rule}", log_level=0)
    spelt = _BYTES.virtual(text.encode())
    return matcher.validate_tokens(spelt) == len(spelt)


@settings(max_examples=60, deadline=None)
@given(pattern=st.sampled_from(("^a+$", "x{3}", "foo|bar", "[^a-z]", "^(ab)*c$", "\\d{2}-\\w")))
def test_an_example_matches_its_pattern(pattern: str) -> None:
    import re

    example = example_of_pattern(pattern)
    assert example is not None
    assert re.search(pattern, example)


def test_the_way_out_of_a_number_adds_no_digit_where_a_key_must_follow() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
    rule = fitted({**schema, "required": ["a", "b"]}).rule
    matcher = LLMatcher(_BYTES.library, f"start: answer\nanswer: %json {rule}")
    assert matcher.consume_tokens(list(b'{"a": 2'))
    way = way_out(matcher, _BYTES, Hints())
    assert way is not None
    assert bytes(way) == b', "b": 0}'
