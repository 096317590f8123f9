"""Grammar rules for arguments: as JSON, or as tags with raw strings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from appliance.engines.chat.schema import fitted
from appliance.types import Json

_CLOSE = '"\\n</parameter>\\n"'
CHOICES_LIMIT = 64
"""Texts to choose from that stand raw; the grammar of many more is slow and no help to a reader."""


def json_grammar(schema: Mapping[str, Json]) -> str:
    """The body of a `%json` rule."""
    return fitted(schema).rule


def tags_rules(schema: Mapping[str, Json], *, name: str = "arguments", suffix: str = "") -> str:
    """The rule `name`: `<parameter=name>` tags in the schema's order; optional ones may be left
    out. Keys the schema does not declare are not offered. `suffix` keeps the rules below it apart
    from those of another schema in one grammar."""
    objects = _objects(schema)
    raw = raw_keys(schema)
    choices: list[str] = []
    rules: list[str] = []
    for number, kept in enumerate(objects):
        shared = {key: kept[key] for key in ("$defs", "definitions") if key in kept}
        required = set(kept.get("required") or ())
        names: list[str] = []
        for index, (key, part) in enumerate(_properties(kept).items()):
            own = f"{number}x{index}{suffix}"
            names.append(f"p{own}" if key in required else f"p{own}?")
            opening = json.dumps(f"<parameter={key}>\n", ensure_ascii=False)
            if key in raw:
                value, more = _raw_value(own, part)
            else:
                whole = {**part, **shared} if isinstance(part, Mapping) else part
                value, more = f"v{own} {_CLOSE}", [f"v{own}: %json {_value_rule(whole)}"]
            rules += [f"p{own}: {opening} {value}", *more]
        choices.append(" ".join(names) or '""')
    return "\n".join([f"{name}: " + " | ".join(choices), *rules])


def raw_keys(schema: Mapping[str, Json]) -> frozenset[str]:
    """The arguments that stand raw between their tags: texts of which nothing is asked but to be
    one, or one of a few. Any other value is JSON, so that whatever its schema asks is kept."""
    texts: set[str] = set()
    others: set[str] = set()
    for kept in _objects(schema):
        for key, part in _properties(kept).items():
            (texts if _is_plain_text(part) else others).add(key)
    return frozenset(texts - others)


def _objects(schema: Mapping[str, Json]) -> list[Mapping[str, Any]]:
    """The objects a schema allows, each by its own keys."""
    kept = fitted(schema).schema
    shared = {key: kept[key] for key in ("$defs", "definitions") if key in kept}
    found: list[Mapping[str, Any]] = []
    pending: list[Mapping[str, Any]] = [kept]
    for _ in range(CHOICES_LIMIT):
        if not pending:
            break
        part = pending.pop(0)
        reference = part.get("$ref")
        branches = part.get("anyOf") or part.get("oneOf")
        if reference is not None:
            target = _target(kept, str(reference))
            pending += [] if target is None else [target]
        elif branches and not part.get("properties"):
            pending[:0] = [each for each in branches if isinstance(each, Mapping)]
        else:
            found.append({**part, **shared})
    return found or [kept]


def _target(root: Mapping[str, Any], reference: str) -> Mapping[str, Any] | None:
    match = re.fullmatch(r"#/(\$defs|definitions)/([^/%~]+)", reference)
    found = None if match is None else (root.get(match[1]) or {}).get(match[2])
    return found if isinstance(found, Mapping) else None


def _properties(kept: Mapping[str, Any]) -> dict[str, Any]:
    """The declared ones, and those that are required without a word."""
    properties = dict(kept.get("properties") or {})
    for name in kept.get("required") or ():
        if name not in properties:
            extra = kept.get("additionalProperties", True)
            patterns = kept.get("patternProperties") or {}
            properties[name] = next(
                (part for pattern, part in patterns.items() if re.search(pattern, name)), extra
            )
    return properties


def _is_plain_text(part: Json) -> bool:
    if not isinstance(part, Mapping):
        return False
    values = _choices(part)
    if values:
        is_few = len(values) <= CHOICES_LIMIT
        return is_few and all(isinstance(v, str) and "\n</" not in v for v in values)
    return dict(part) == {"type": "string"}


def _choices(part: Mapping[str, Json]) -> list[Json]:
    return list(part.get("enum") or ([part["const"]] if "const" in part else []))


def _value_rule(schema: Json) -> str:
    return fitted(schema).rule if isinstance(schema, Mapping) else "{}"


def _raw_value(own: str, part: Mapping[str, Json]) -> tuple[str, list[str]]:
    """A raw string up to its closing tag, and the rules it needs."""
    values = _choices(part)
    if values:
        choices = " | ".join(json.dumps(value, ensure_ascii=False) for value in values)
        return f"({choices}) {_CLOSE}", []
    return f"v{own}", [f"v{own}[suffix={_CLOSE}]: /(?s:.*)/"]
