"""JSON schemas at random: what tools in the wild declare, and what they hardly dare to."""

from __future__ import annotations

import random
from typing import Any

_WORDS = ("path", "query", "city", "limit", "mode", "items", "user id", "größe", "a", "x-y", "text")
_FORMATS = ("date-time", "date", "email", "uuid", "ipv4", "uri", "hostname", "made-up")
_PATTERNS = (
    "^[a-z]+$",
    "^[A-Z]{3}-\\d{4}$",
    "\\d+",
    "^(ab)*c$",
    "^#?[0-9a-f]{6}$",
    "^[^\\s]{2,8}$",
    "foo|bar",
)


def random_tool_schema(rng: random.Random) -> dict[str, Any]:
    """An object of up to six properties, up to three levels deep, sometimes recursive."""
    schema = _object(rng, depth=0)
    if rng.random() < 0.1:
        schema["$defs"] = {
            "node": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                },
                "required": ["name", "children"],
            }
        }
        schema.setdefault("properties", {})["tree"] = {"$ref": "#/$defs/node"}
        schema["required"] = [*schema.get("required", []), "tree"]
    return schema


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(_WORDS, rng.randint(0, 6 if depth == 0 else 3))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _any(rng, depth + 1) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
    }
    if rng.random() < 0.3:
        schema["additionalProperties"] = rng.choice(
            (False, True, {"type": "integer"}, {"type": "string", "maxLength": 9})
        )
    if rng.random() < 0.1 and len(names) > 1:
        schema["dependentRequired"] = {names[0]: [names[1]]}
    if rng.random() < 0.1 and names:
        schema["minProperties"] = rng.randint(1, len(names))
    return schema


def _any(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds = [_string, _string, _integer, _number, _boolean, _enum, _union, _constant]
    if depth < 4:
        kinds += [_object, _array, _array, _map]
    schema = rng.choice(kinds)(rng, depth)
    if rng.random() < 0.3:
        schema["description"] = "what it is for"
    return schema


def _string(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    roll = rng.random()
    if roll < 0.15:
        schema["pattern"] = rng.choice(_PATTERNS)
    elif roll < 0.3:
        schema["format"] = rng.choice(_FORMATS)
    elif roll < 0.6:
        schema["minLength"] = rng.randint(0, 20)
        schema["maxLength"] = schema["minLength"] + rng.randint(0, 40)
    return schema


def _integer(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    if rng.random() < 0.4:
        schema["minimum"] = rng.randint(-1000, 1000)
        if rng.random() < 0.6:
            schema["maximum"] = schema["minimum"] + rng.randint(7, 500)
    if rng.random() < 0.15:
        schema["multipleOf"] = rng.choice((2, 5, 7))
    return schema


def _number(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "number"}
    if rng.random() < 0.3:
        schema[rng.choice(("minimum", "exclusiveMinimum"))] = rng.choice((0, -1.5, 3))
        schema[rng.choice(("maximum", "exclusiveMaximum"))] = rng.choice((3.5, 10, 1e6))
    if rng.random() < 0.1:
        step = rng.choice((0.1, 0.5, 0.01))
        # Between 3 and 3.5, both excluded, there is no half: no value would be valid.
        if not (
            step == 0.5 and {("exclusiveMinimum", 3), ("exclusiveMaximum", 3.5)} <= schema.items()
        ):
            schema["multipleOf"] = step
    return schema


def _boolean(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "boolean"}


def _constant(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"const": rng.choice(("on", 3, None, True, {"a": [1]}))}


def _enum(rng: random.Random, depth: int) -> dict[str, Any]:
    values = ("red", "green", 'dark "blue"', "<tag>", "", 7, None, 1.5)
    return {"enum": rng.sample(values, rng.randint(1, 5))}


def _union(rng: random.Random, depth: int) -> dict[str, Any]:
    if rng.random() < 0.4:
        return {"type": rng.sample(("string", "integer", "null", "boolean", "number"), 2)}
    key = rng.choice(("anyOf", "anyOf", "oneOf"))
    if key == "oneOf":
        return {key: [_string(rng, depth), {"type": "null"}, {"type": "array", "maxItems": 2}]}
    return {key: [_any(rng, depth + 1) for _ in range(rng.randint(1, 3))]}


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "items": _any(rng, depth + 1)}
    if rng.random() < 0.4:
        schema["minItems"] = rng.randint(0, 3)
        schema["maxItems"] = schema["minItems"] + rng.randint(0, 4)
    if rng.random() < 0.1 and schema.get("minItems", 0) < 2:
        schema["uniqueItems"] = True
    if rng.random() < 0.1:
        del schema["items"]
        schema["prefixItems"] = [_integer(rng, depth), _string(rng, depth)]
    return schema


def _map(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "additionalProperties": _any(rng, depth + 1)}
    if rng.random() < 0.3:
        schema["minProperties"] = rng.randint(1, 3)
    if rng.random() < 0.2:
        schema["propertyNames"] = {"pattern": "^[a-z]{1,8}$"}
    return schema
