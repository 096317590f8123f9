"""JSON schemas as the constraint library can keep them. (Strengthening comes before looseness.)"""

from __future__ import annotations

from collections.abc import Mapping

from appliance.types import Json


def is_string_schema(schema: Mapping[str, Json], key: str) -> bool:
    """Whether the property can hold nothing but a string."""
    found = (schema.get("properties") or {}).get(key)
    if not isinstance(found, dict):
        return False
    if found.get("type") == "string":
        return True
    values = found.get("enum") or ([found["const"]] if "const" in found else [])
    return bool(values) and all(isinstance(value, str) for value in values)


def strengthened(schema: Mapping[str, Json]) -> Json:
    """The schema with open objects closed: a model shall not invent arguments."""
    return _closed(schema)


def _closed(schema: Json) -> Json:
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if isinstance(closed.get("properties"), dict) and "additionalProperties" not in closed:
        closed["additionalProperties"] = False
    return closed


def growth_per_token(schema: Mapping[str, Json]) -> int:
    """Tokens that one more token can add to the way out of a value of this schema."""
    return 64
