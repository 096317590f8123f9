"""The last word on a call or an answer: is it valid against its schema?"""

from __future__ import annotations

import json
from collections.abc import Mapping

import jsonschema

from appliance.errors import EngineError
from appliance.types import Json, ToolSpec


def check_call(tool: ToolSpec, arguments_json: str) -> Mapping[str, Json]:
    """The arguments, parsed. Raises `EngineError` naming the tool and what is wrong."""
    arguments = _parse(arguments_json, f"the call of {tool.name}")
    if not isinstance(arguments, dict):
        raise EngineError(f"the call of {tool.name} has no object of arguments")
    _check(arguments, tool.input_schema, f"the call of {tool.name}")
    return arguments


def check_answer(text: str, schema: Mapping[str, Json]) -> None:
    """Raises `EngineError` unless `text` is JSON valid against `schema`."""
    _check(_parse(text, "the answer"), schema, "the answer")


def problem_of(value: Json, schema: Mapping[str, Json]) -> str | None:
    """What makes `value` invalid, in words; None when it is valid."""
    validator = jsonschema.validators.validator_for(
        schema, default=jsonschema.Draft202012Validator
    )(schema)
    error = jsonschema.exceptions.best_match(validator.iter_errors(value))
    return None if error is None else f"{error.json_path}: {error.message}"


def _parse(text: str, what: str) -> Json:
    try:
        return json.loads(text)
    except ValueError as error:
        raise EngineError(f"{what} is no JSON: {error}") from error


def _check(value: Json, schema: Mapping[str, Json], what: str) -> None:
    problem = problem_of(value, schema)
    if problem is not None:
        raise EngineError(f"{what} breaks its schema: {problem}", details={"problem": problem})
