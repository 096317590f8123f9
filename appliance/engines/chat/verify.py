"""The last word on a call or an answer: is it valid against its schema?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema

from appliance.errors import EngineError
from appliance.types import Json, ToolSpec


def check_call(tool: ToolSpec, arguments_json: str) -> Mapping[str, Json]:
    """The arguments, parsed. Raises `EngineError` naming the tool and what is wrong."""
    what = f"the call of {tool.name}"
    arguments = _parse(arguments_json, what)
    if not isinstance(arguments, dict):
        raise EngineError(f"{what} has no object of arguments")
    _check(arguments, tool.input_schema, what)
    return arguments


def check_answer(text: str, schema: Mapping[str, Json]) -> None:
    """Raises `EngineError` unless `text` is JSON valid against `schema`."""
    _check(_parse(text, "the answer"), schema, "the answer")


def problem_of(value: Json, schema: Mapping[str, Json]) -> str | None:
    """What makes `value` invalid, in words; None when it is valid.

    Sets written as arrays (`uniqueItems`) lose their duplicates first, in place: it is the one
    repair that changes nothing of what was meant.
    """
    validator = _validator(schema)
    for error in sorted(validator.iter_errors(value), key=lambda found: -len(found.path)):
        if error.validator == "uniqueItems":
            _deduplicate(error.instance)
    found = jsonschema.exceptions.best_match(validator.iter_errors(value))
    return None if found is None else f"{found.json_path}: {found.message}"


def _validator(schema: Mapping[str, Json]) -> Any:
    """Draft 2020-12 unless the schema says otherwise, or can only be older."""
    default: Any = jsonschema.Draft202012Validator
    if '"items": [' in json.dumps(schema):
        default = jsonschema.Draft7Validator
    kind = jsonschema.validators.validator_for(schema, default=default)
    lenient: Any = jsonschema.validators.extend(kind, {"pattern": _pattern})  # type: ignore[no-untyped-call]
    return lenient(schema)


def _pattern(_: Any, pattern: str, text: Json, __: Json) -> Iterator[jsonschema.ValidationError]:
    """As the validator's own, but for patterns that only ECMAScript knows (`\\p{L}`): of them the
    grammar's word is taken."""
    if not isinstance(text, str):
        return
    try:
        if not re.search(pattern, text):
            yield jsonschema.ValidationError(f"{text!r} does not match {pattern!r}")
    except re.error:
        return


def _deduplicate(values: list[Json]) -> None:
    seen: set[str] = set()
    kept: list[Json] = []
    for value in values:
        key = json.dumps(value, sort_keys=True)
        if key not in seen:
            seen.add(key)
            kept.append(value)
    values[:] = kept


def _parse(text: str, what: str) -> Json:
    try:
        value = json.loads(text)
        # Digits can add up to an infinity, which JSON cannot say again.
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{what} is no JSON: {error}") from error
    return value


def _check(value: Json, schema: Mapping[str, Json], what: str) -> None:
    try:
        problem = problem_of(value, schema)
    except Exception as error:  # a validator fails in many ways on what is no schema
        raise EngineError(f"the schema of {what} cannot be checked: {error!r}"[:500]) from error
    if problem is not None:
        raise EngineError(f"{what} breaks its schema: {problem}", details={"problem": problem})
