"""Grammar rules for arguments: as JSON, or as tags with raw strings."""

from __future__ import annotations

import json
from collections.abc import Mapping

from appliance.engines.chat.schema import fitted, is_string_schema
from appliance.types import Json

_CLOSE = '"\\n</parameter>\\n"'


def json_grammar(schema: Mapping[str, Json]) -> str:
    """The body of a `%json` rule."""
    return fitted(schema).rule


def tags_rules(schema: Mapping[str, Json]) -> str:
    """`arguments` as `<parameter=name>` tags in the schema's order; optional ones may be left
    out."""
    properties: Mapping[str, Json] = schema.get("properties") or {}
    required = set(schema.get("required") or ())
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    names: list[str] = []
    rules: list[str] = []
    for index, (name, found) in enumerate(properties.items()):
        names.append(f"p{index}" if name in required else f"p{index}?")
        opening = json.dumps(f"<parameter={name}>\n", ensure_ascii=False)
        value, more = _value(index, found, is_string_schema(schema, name), shared)
        rules.append(f"p{index}: {opening} {value}")
        rules += more
    return "\n".join(["arguments: " + (" ".join(names) or '""'), *rules])


def _value(
    index: int, schema: Json, is_string: bool, shared: Mapping[str, Json]
) -> tuple[str, list[str]]:
    """The body of one parameter up to its closing tag, and the rules it needs."""
    if not is_string:
        return f"v{index} {_CLOSE}", [f"v{index}: %json {json_grammar({**schema, **shared})}"]
    values = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if values:
        choices = " | ".join(json.dumps(value, ensure_ascii=False) for value in values)
        return f"({choices}) {_CLOSE}", []
    shortest, longest = schema.get("minLength", 0), schema.get("maxLength", "")
    if shortest or longest != "":
        text = f"/(?s:.){{{shortest},{longest}}}/"
        return f"V{index} {_CLOSE}", [f"V{index}: {text}"]
    return f"v{index}", [f"v{index}[suffix={_CLOSE}]: /(?s:.*)/"]
