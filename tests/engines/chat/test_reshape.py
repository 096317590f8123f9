"""Schemas put together from several places: said as whole objects, and never more widely."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import jsonschema
import pytest

from appliance.engines.chat.constraint import ConstraintFactory
from appliance.engines.chat.reshape import as_arguments, reshaped
from appliance.engines.chat.schema import fitted
from appliance.engines.chat.template import ChatTemplate
from tests.engines.chat.templates import real_template
from tests.engines.chat.test_toolcalls import MARKS, PATH, demanded_call
from tests.engines.chat.vocab import RealVocab, real_vocab

TEXT: Mapping[str, Any] = {"type": "string"}
AB: Mapping[str, Any] = {"type": "object", "properties": {"a": TEXT, "b": {"type": "integer"}}}


def closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


SHAPES: dict[str, dict[str, Any]] = {
    "nothing said": {},
    "an object or nothing": {"type": ["object", "null"], "properties": {"a": TEXT}},
    "properties without a type": {"properties": {"a": TEXT}, "required": ["a"]},
    "one of two keys at least": {**AB, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
    "exactly one of two keys": {**AB, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
    "more keys in branches": {
        **closed(a={"type": "integer"}),
        "anyOf": [closed(b=TEXT), closed(c={"type": "null"})],
    },
    "a kind and its keys": {
        **closed(kind={"enum": ["x", "y"]}),
        "oneOf": [
            closed(kind={"const": "x"}, n={"type": "integer"}),
            closed(kind={"const": "y"}, s=TEXT),
        ],
    },
    "branches closed from outside": {
        "type": "object",
        "anyOf": [closed(a=TEXT), closed(b=TEXT)],
        "unevaluatedProperties": False,
    },
    "parts closed from outside": {
        "allOf": [closed(a={"type": "integer"}), closed(b=TEXT)],
        "unevaluatedProperties": False,
    },
    "if one value then a key": {
        "type": "object",
        "properties": {"k": {"enum": ["x", "y"]}, "v": TEXT},
        "required": ["k"],
        "if": {"properties": {"k": {"const": "x"}}},
        "then": {"required": ["v"]},
        "else": {"properties": {"v": False}},
    },
    "not a text": closed(x={"not": {"type": "string"}}),
    "all of a few": closed(
        x={"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True, "minItems": 2}
    ),
    "64-bit integers": closed(
        x={"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
        y={"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
    ),
    "many keys": {"type": "object", "minProperties": 20, "additionalProperties": {"type": "null"}},
    "named by a pattern": {
        "type": "object",
        "propertyNames": {"pattern": "^[a-z]{2,4}$"},
        "additionalProperties": {"type": "integer"},
        "minProperties": 2,
    },
    "Python's anchors": closed(x={"type": "string", "pattern": "\\A[A-Z]{2}\\Z"}),
}


@pytest.fixture(scope="module")
def vocab() -> RealVocab:
    if not PATH.is_file():
        pytest.skip("the real vocabularies are not here (../shared/vocab)")
    return real_vocab(PATH, MARKS)


@pytest.fixture(scope="module")
def factory(vocab: RealVocab) -> ConstraintFactory:
    return vocab.factory()


@pytest.mark.parametrize("name", list(SHAPES))
def test_random_tokens_make_a_valid_call(
    factory: ConstraintFactory, vocab: RealVocab, name: str
) -> None:
    check(factory, vocab, SHAPES[name])


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "named by a pattern"])
def test_arguments_in_tags_are_as_valid(
    factory: ConstraintFactory, vocab: RealVocab, name: str
) -> None:
    check(factory, vocab, SHAPES[name], real_template("Qwen3-Coder"))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "string", "minLength": 200, "maxLength": 400},
        {"type": "string", "minLength": 1},
        {"type": "string", "format": "date"},
        {"type": "string", "pattern": "^[a-z]+$", "maxLength": 9},
        {"type": "string", "enum": ["a", 1, None]},
        {"enum": [f"value {n}" for n in range(500)]},
    ],
)
def test_a_text_of_which_more_is_asked_keeps_it_in_tags_too(
    factory: ConstraintFactory, vocab: RealVocab, part: dict[str, Any]
) -> None:
    check(factory, vocab, closed(x=part), real_template("Qwen3-Coder"))


def check(
    factory: ConstraintFactory,
    vocab: RealVocab,
    schema: dict[str, Any],
    template: ChatTemplate | None = None,
) -> None:
    for seed in range(3):
        rng = random.Random(seed)
        (arguments,) = demanded_call(factory, vocab, rng, schema, 900, template, parallel=False)
        form = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.Draft202012Validator(schema, format_checker=form).validate(arguments)


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "named by a pattern"])
def test_what_is_said_whole_is_kept_from_the_first_character(name: str) -> None:
    assert fitted(as_arguments(SHAPES[name])).is_exact


def test_a_branch_that_nothing_fits_is_left_out() -> None:
    shape = {
        **closed(kind={"enum": ["x"]}),
        "additionalProperties": False,
        "anyOf": [closed(kind={"const": "x"}), closed(kind={"const": "z"}), closed(more=TEXT)],
    }
    found = reshaped(shape)
    assert [part["properties"]["kind"] for part in found["anyOf"]] == [{"enum": ["x"]}]


def test_a_branch_closed_for_itself_takes_no_key_from_outside() -> None:
    shape = {**AB, "anyOf": [{**closed(c=TEXT), "unevaluatedProperties": False}]}
    (part,) = reshaped(shape)["anyOf"]
    assert list(part["properties"]) == ["c"]
    assert part["additionalProperties"] is False


@pytest.mark.parametrize(
    "more",
    [{"minProperties": 2}, {"propertyNames": {"maxLength": 1}}, {"not": {"required": ["b"]}}],
)
def test_an_object_of_which_more_is_asked_is_left_as_it_was_said(more: dict[str, Any]) -> None:
    shape = {**AB, **more, "anyOf": [{"required": ["a"]}]}
    assert reshaped(shape) == shape


def test_overlapping_branches_stay_to_be_checked() -> None:
    shape = {**AB, "oneOf": [closed(a=TEXT), closed(a=TEXT, c=TEXT)]}
    assert "oneOf" in reshaped(shape)


@pytest.mark.parametrize(
    "shape",
    [
        {"type": "object", "properties": []},
        closed(x={"type": "string", "required": True}),
        closed(x={"anyOf": "none"}),
    ],
)
def test_what_is_no_schema_still_gets_a_rule_and_a_check(shape: dict[str, Any]) -> None:
    found = fitted(shape)
    assert found.rule
    assert not found.is_exact
