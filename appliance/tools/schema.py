"""Arguments against a tool's JSON Schema, and schemas of strangers against what we can afford.

A schema from an MCP server is untrusted: it may refer to the network, recurse for ever, double its
work with every level, or hold a regular expression that never returns. So references resolve within
the schema only, patterns are not tried (the server checks its own), and every step costs one unit
of a bounded amount of fuel.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from appliance.types import Json

if TYPE_CHECKING:
    from jsonschema import ValidationError

SCHEMA_MAX_CHARS = 32_768
ARGUMENTS_MAX_CHARS = 8 << 20
FUEL = 20_000
"""Steps of one validation: a large honest call takes some hundreds."""
PROBLEMS_MAX = 5


class _OutOfFuel(Exception):
    pass


def problems(schema: Mapping[str, Json], arguments: Json) -> list[str]:
    """What is wrong with the arguments, in sentences for a model; empty when they fit."""
    if not isinstance(arguments, Mapping):
        return ["the arguments must be a JSON object"]
    try:
        size = len(json.dumps(arguments, default=dict))
    except (TypeError, ValueError, RecursionError) as error:
        return [f"the arguments are no JSON: {error}"]
    if size > ARGUMENTS_MAX_CHARS:
        return [f"the arguments have {size} characters, more than {ARGUMENTS_MAX_CHARS}"]
    from referencing.exceptions import Unresolvable

    found = []
    try:
        for problem in _validator(schema).iter_errors(dict(arguments)):
            found.append(_sentence(problem))
            if len(found) >= PROBLEMS_MAX:
                break
    except (_OutOfFuel, RecursionError, Unresolvable) as error:
        return [f"the tool's schema cannot be checked: {type(error).__name__.lstrip('_')}"]
    return found


def schema_problem(schema: Json) -> str:
    """Why a schema from a stranger cannot be used; the empty text when it can."""
    try:
        text = json.dumps(schema)
    except (TypeError, ValueError, RecursionError):
        return "the schema is no JSON"
    if len(text) > SCHEMA_MAX_CHARS:
        return f"the schema has {len(text)} characters, more than {SCHEMA_MAX_CHARS}"
    if not isinstance(schema, dict) or schema.get("type") != "object":
        return "the schema is not of type object"
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except (SchemaError, RecursionError) as error:
        return f"the schema is wrong: {str(error)[:200]}"
    return ""


def _validator(schema: Mapping[str, Json]) -> Any:
    from jsonschema import Draft202012Validator, validators
    from referencing import Registry

    fuel = [FUEL]

    def fueled(check: Callable[..., Any]) -> Callable[..., Iterator[ValidationError]]:
        def step(*arguments: Any) -> Iterator[ValidationError]:
            fuel[0] -= 1
            if fuel[0] < 0:
                raise _OutOfFuel
            yield from check(*arguments) or ()

        return step

    keywords = {
        name: fueled(check)
        for name, check in Draft202012Validator.VALIDATORS.items()
        if name not in ("pattern", "patternProperties", "format", "$dynamicRef")
    }
    if "patternProperties" in json.dumps(schema, default=dict):
        del keywords["additionalProperties"]  # it would try those patterns
    kind = validators.create(Draft202012Validator.META_SCHEMA, keywords)
    return kind(schema, registry=Registry())


def _sentence(error: ValidationError) -> str:
    where = ".".join(str(part) for part in error.absolute_path)
    return f"{where}: {error.message[:300]}" if where else error.message[:300]
