"""How much the values of a schema take at least: what opening one can cost to close again."""

from __future__ import annotations

import json
from collections.abc import Mapping

from appliance.types import Json

_DEPTH = 8
_DEEP = 64
"""Bytes taken for what lies deeper than we look."""
_LEAST = {"string": 2, "number": 1, "integer": 1, "boolean": 4, "null": 4, "array": 2, "object": 2}
_FORMAT_BYTES = 40
_AROUND_KEY = 6
"""Quotes, a colon, a comma and two blanks."""
_VALUES = frozenset(("type", "properties", "$ref", "const", "enum"))


def growth(schema: Json) -> int:
    """Tokens that one more token can add to the way out: two values opened at once, at two bytes a
    token. The whole value is not among them, it is open already."""
    return min(_largest_part(schema), 1 << 12) + 8


def _largest_part(schema: Json) -> int:
    """The most bytes that a token can commit an answer to: a key that may be left out with the
    smallest value it takes, the longest of a list of values, the smallest value of any part."""
    sizes = [2]
    pending: list[Json] = [schema]
    while pending:
        part = pending.pop()
        if isinstance(part, Mapping):
            pending += part.values()
            if part is not schema and not _VALUES.isdisjoint(part):
                sizes.append(_opened(part, schema))
            properties = part.get("properties")
            if isinstance(properties, Mapping):
                sizes += [
                    len(key.encode()) + _AROUND_KEY + _opened(value, schema)
                    for key, value in properties.items()
                ]
        elif isinstance(part, list):
            pending += part
    return max(sizes)


def _opened(schema: Json, root: Json) -> int:
    """As `_least`, but of a list of values the longest: its first letter may have been said."""
    if isinstance(schema, Mapping) and isinstance(schema.get("enum"), list) and schema["enum"]:
        return max(len(json.dumps(value).encode()) for value in schema["enum"])
    return _least(schema, root, 0)


def types_of(schema: Mapping[str, Json]) -> set[str]:
    """The `type` keyword as a set; empty where there is none."""
    found = schema.get("type", [])
    return {found} if isinstance(found, str) else set(found)


def _least(schema: Json, root: Json, depth: int) -> int:
    """About the bytes of the smallest value of a schema, as our separators print it."""
    if not isinstance(schema, Mapping):
        return 2
    if depth > _DEPTH:
        return _DEEP
    if "const" in schema:
        return len(json.dumps(schema["const"]).encode())
    if schema.get("enum"):
        return min(len(json.dumps(value).encode()) for value in schema["enum"])
    if "$ref" in schema:
        return _least(_resolved(schema["$ref"], root), root, depth + 1)
    size = 0
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            size = min(_least(part, root, depth + 1) for part in schema[key])
    size += sum(_least(part, root, depth + 1) for part in schema.get("allOf", ()))
    types = types_of(schema) or ({"object"} if "properties" in schema else set())
    if types:
        size += min(_least_of_type(name, schema, root, depth) for name in sorted(types))
    return max(size, 1)


def _least_of_type(name: str, schema: Mapping[str, Json], root: Json, depth: int) -> int:
    size = _LEAST.get(name, 2)
    if name == "object":
        properties = schema.get("properties") or {}
        for key in schema.get("required") or ():
            size += len(key.encode()) + _AROUND_KEY + _least(properties.get(key), root, depth + 1)
    elif name == "array":
        items = schema.get("minItems", 0)
        size += items * (2 + _least(schema.get("items"), root, depth + 1))
    elif name == "string":
        size += max(schema.get("minLength", 0), _FORMAT_BYTES if "format" in schema else 0)
        size += 24 if "pattern" in schema else 0
    elif name in ("number", "integer"):
        size += len(str(schema.get("minimum", 0)))
    return size


def _resolved(reference: str, root: Json) -> Json:
    found = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        step = step.replace("~1", "/").replace("~0", "~")
        if step:
            found = found.get(step) if isinstance(found, Mapping) else None
    return found
