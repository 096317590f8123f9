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


def tags_rules(schema: Mapping[str, Json], *, name: str = "arguments", suffix: str = "") -> str:
    """The rule `name`: `<parameter=name>` tags in the schema's order; optional ones may be left
    out. Keys the schema does not declare are not offered. `suffix` keeps the rules below it apart
    from those of another schema in one grammar."""
    kept = fitted(schema).schema
    properties: Mapping[str, Json] = kept.get("properties") or {}
    required = set(kept.get("required") or ())
    shared = {key: kept[key] for key in ("$defs", "definitions") if key in kept}
    names: list[str] = []
    rules: list[str] = []
    for index, (key, found) in enumerate(properties.items()):
        own = f"{index}{suffix}"
        names.append(f"p{own}" if key in required else f"p{own}?")
        opening = json.dumps(f"<parameter={key}>\n", ensure_ascii=False)
        if is_string_schema(kept, key):
            value, more = _raw_value(own, found)
        else:
            whole = {**found, **shared} if isinstance(found, Mapping) else found
            value, more = f"v{own} {_CLOSE}", [f"v{own}: %json {_value_rule(whole)}"]
        rules += [f"p{own}: {opening} {value}", *more]
    return "\n".join([f"{name}: " + (" ".join(names) or '""'), *rules])


def _value_rule(schema: Json) -> str:
    return fitted(schema).rule if isinstance(schema, Mapping) else "{}"


def _raw_value(own: str, schema: Mapping[str, Json]) -> tuple[str, list[str]]:
    """A raw string up to its closing tag, and the rules it needs."""
    values = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if values:
        choices = " | ".join(json.dumps(value, ensure_ascii=False) for value in values)
        return f"({choices}) {_CLOSE}", []
    shortest, longest = schema.get("minLength", 0), schema.get("maxLength", "")
    limits = []
    if shortest or longest != "":
        limits.append(f"/(?s:.){{{shortest},{longest}}}/")
    if "pattern" in schema:
        limits.append(_anywhere(schema["pattern"]))
    if not limits:
        return f"v{own}", [f"v{own}[suffix={_CLOSE}]: /(?s:.*)/"]
    # The reader ends at the first closing tag, so the text must have none.
    limits.append("~/(?s:.*)\\n<\\/parameter>(?s:.*)/")
    return f"V{own} {_CLOSE}", [f"V{own}: {' & '.join(limits)}"]


def _anywhere(pattern: str) -> str:
    """JSON Schema finds a pattern anywhere in the text; a terminal must match all of it."""
    whole = "|" not in pattern
    anchored = whole and pattern.startswith("^")
    ended = whole and pattern.endswith("$") and not pattern.endswith("\\$")
    inner = pattern[anchored : len(pattern) - ended].replace("/", "\\/")
    before = "" if anchored else "(?s:.*)"
    return f"/{before}(?:{inner}){'' if ended else '(?s:.*)'}/"
