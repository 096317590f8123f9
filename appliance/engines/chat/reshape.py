"""Schemas said the way the constraint library understands them best, before `schema.py` fits them.

What people write and what a grammar can keep differ most where an object is described in several
places: properties at the top, and beside them `anyOf` with what else is `required`, or `if` one
value then another key. Kept apart such parts can only be checked when a value is finished; put
together into one whole object for each branch they are kept from the first character. Everything
here is *narrower* than or equal to what was said (see `schema.py`), so the original still judges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from math import perm
from typing import Any, Final

from appliance.engines.chat.numeric import INTEGER_BOUND, NUMBER_BOUND
from appliance.types import Json

ARRAYS_LIMIT = 400
"""Arrays without duplicates listed one by one: all of up to five values."""

_BY_NAME: Final = ("properties", "patternProperties", "$defs", "definitions")
_LISTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE: Final = ("items", "additionalProperties", "contains", "then", "else")
_NOTES: Final = frozenset(("title", "description", "$comment", "examples", "default", "deprecated"))
_OBJECT: Final = frozenset(
    ("type", "properties", "required", "additionalProperties", "unevaluatedProperties")
)
_APART: Final = frozenset(
    (
        "$ref", "patternProperties", "minProperties", "maxProperties", "propertyNames", "enum",
        "const", "not", "dependentRequired", "dependentSchemas", "dependencies",
    )
)  # fmt: skip
"""Beside these an object is left as it was said."""
_TYPES: Final = ("null", "boolean", "number", "string", "array", "object")
_FORMATS: Final = {
    "idn-email": "email",
    "idn-hostname": "hostname",
    "iri": "uri",
    "uri-reference": "uri",
    "iri-reference": "uri",
}
"""Every value of the second is one of the first."""
_LENGTHS: Final = {"date": 10, "uuid": 36}

_Object = dict[str, Any]


def as_arguments(schema: Mapping[str, Json]) -> Mapping[str, Json]:
    """A tool's schema: its arguments are an object, also where the schema does not say so."""
    types = schema.get("type")
    if types is None and _composed(schema):
        return schema
    if types is None or (isinstance(types, list) and "object" in types):
        return {**schema, "type": "object"}
    return schema


def reshaped(schema: Json) -> Any:
    """The schema with every part of it said otherwise where that helps."""
    if not isinstance(schema, Mapping):
        return schema
    found: _Object = dict(schema)
    for key in _BY_NAME:
        if isinstance(found.get(key), Mapping):
            found[key] = {name: reshaped(part) for name, part in found[key].items()}
    for key in _LISTS:
        if isinstance(found.get(key), list):
            found[key] = [reshaped(part) for part in found[key]]
    for key in _SINGLE:
        if isinstance(found.get(key), Mapping):
            found[key] = reshaped(found[key])
    _bounds(found)
    _text(found)
    _not(found)
    _unique(found)
    return _whole(found)


def _composed(schema: Mapping[str, Json]) -> bool:
    return any(key in schema for key in ("$ref", "anyOf", "oneOf", "allOf", "enum", "const"))


def _bounds(found: _Object) -> None:
    """Limits that no double holds exactly are drawn in to those that one does."""
    types = found.get("type")
    most = INTEGER_BOUND if types == "integer" else NUMBER_BOUND
    least, largest = found.get("minimum", 0), found.get("maximum", 0)
    if not (_is_number(least) and _is_number(largest)):
        return
    if largest > most >= least:
        found["maximum"] = most
    if least < -most <= largest:
        found["minimum"] = -most


def _text(found: _Object) -> None:
    pattern = found.get("pattern")
    if isinstance(pattern, str):
        # Python's own anchors; JSON Schema's dialect has but these.
        if pattern.startswith("\\A"):
            pattern = "^" + pattern[2:]
        if pattern.endswith("\\Z") and not pattern.endswith("\\\\Z"):
            pattern = pattern[:-2] + "$"
        found["pattern"] = pattern
    form = found.get("format")
    if not isinstance(form, str):
        return
    found["format"] = _FORMATS.get(form, form)
    length = _LENGTHS.get(form)
    if length and found.get("minLength", 0) <= length <= found.get("maxLength", length):
        found.pop("minLength", None)
        found.pop("maxLength", None)


def _not(found: _Object) -> None:
    """`not` of a type is the other types."""
    unwanted = found.get("not")
    if not isinstance(unwanted, Mapping) or unwanted.keys() != {"type"}:
        return
    refused = _listed(unwanted["type"])
    own = _listed(found["type"]) if "type" in found else list(_TYPES)
    if "number" in refused:
        refused.append("integer")
    elif "integer" in refused and "number" in own:
        return
    kept = [name for name in own if name not in refused]
    if kept and not _composed(found):
        found["type"] = kept
        del found["not"]


def _unique(found: _Object) -> None:
    """An array of different ones of a few values is one of a list of arrays."""
    items = found.get("items")
    if not found.get("uniqueItems") or found.get("type") != "array" or "prefixItems" in found:
        return
    values = _values(items)
    if values is None or "contains" in found:
        return
    least = found.get("minItems", 0)
    most = min(found.get("maxItems", len(values)), len(values))
    if least < 2 or sum(perm(len(values), size) for size in range(least, most + 1)) > ARRAYS_LIMIT:
        return
    arrays = [list(each) for size in range(least, most + 1) for each in permutations(values, size)]
    if arrays:
        for key in ("type", "items", "uniqueItems", "minItems", "maxItems"):
            found.pop(key, None)
        found["enum"] = arrays


def _values(schema: Json) -> list[Json] | None:
    """All values a schema allows, where they are few and different from one another."""
    if not isinstance(schema, Mapping):
        return None
    known = schema.keys() - _NOTES
    values: list[Json] | None = None
    if known <= {"enum", "type"} and isinstance(schema.get("enum"), list):
        kind = schema.get("type")
        if kind in (None, "string"):
            values = [v for v in schema["enum"] if kind is None or isinstance(v, str)]
    elif schema.get("type") == "boolean" and known == {"type"}:
        values = [False, True]
    elif schema.get("type") == "integer" and known == {"type", "minimum", "maximum"}:
        least, most = schema["minimum"], schema["maximum"]
        if isinstance(least, int) and isinstance(most, int) and most - least < 8:
            values = list(range(least, most + 1))
    if values is not None and len({repr(value) for value in values}) != len(values):
        return None
    return values


# --- one object, described in several places ----------------------------------------------------


def _whole(found: _Object) -> _Object:
    """Branches beside an object's own keywords become whole objects."""
    composing = [key for key in ("anyOf", "oneOf", "allOf", "if") if key in found]
    if len(composing) != 1 or not _APART.isdisjoint(found):
        return found
    base = {key: found[key] for key in _OBJECT if key in found}
    if found.get("type", "object") != "object" or not _is_plain(base):
        return found
    (key,) = composing
    parts = _conditional(found, base) if key == "if" else found[key]
    if not parts or not all(_is_plain(part) for part in parts):
        return found
    taken = {*_OBJECT, "anyOf", "oneOf", "allOf", "if", "then", "else"}
    rest = {name: value for name, value in found.items() if name not in taken}
    if key == "allOf":
        whole = _merged(base, *parts)
        return found if whole is None else {**rest, **whole}
    if key != "if" and not base.keys() - {"type"}:
        return found
    branches = [whole for part in parts if (whole := _merged(base, part)) is not None]
    if key == "oneOf":
        branches = [_without_marks(each, branches) for each in branches]
        if len(branches) < len(parts) or not _are_apart(branches, parts):
            return found
    return {**rest, "anyOf": branches} if branches else found


def _is_plain(part: Json) -> bool:
    """An object by its keys alone."""
    return (
        isinstance(part, Mapping)
        and part.keys() <= _OBJECT | _NOTES
        and part.get("type", "object") == "object"
        and isinstance(part.get("properties", {}), Mapping)
        and isinstance(part.get("required", []), list)
    )


def _merged(*parts: Mapping[str, Json]) -> _Object | None:
    """One closed object that all of these allow; None where there is none."""
    properties: _Object = {}
    required: list[str] = []
    for part in parts:
        for name, value in part.get("properties", {}).items():
            properties[name] = _both(properties[name], value) if name in properties else value
        required += [name for name in part.get("required", []) if name not in required]
    for part in parts:
        extra = part.get("additionalProperties", True)
        if extra is True and part is not parts[0]:
            # What another part declares is evaluated by none but the first, which holds them all.
            extra = part.get("unevaluatedProperties", True)
        own = part.get("properties", {})
        for name in [*properties, *required]:
            if name in own:
                continue
            if extra is False:
                properties[name] = False
            elif extra is not True:
                properties[name] = _both(properties.get(name, True), extra)
    if any(properties.get(name, True) is False for name in required):
        return None
    allowed = {name: value for name, value in properties.items() if value is not False}
    whole: _Object = {"type": "object", "properties": allowed, "required": required}
    if properties or required:
        whole["additionalProperties"] = False
    return whole


def _both(one: Json, other: Json) -> Any:
    if one is False or other is False:
        return False
    if one is True or one == {} or one == other:
        return other
    if other is True or other == {}:
        return one
    for narrow, wide in ((one, other), (other, one)):
        # A value picked from a type, as discriminators do.
        values = _picked(narrow)
        if values is not None and wide.keys() <= {"type", "enum", "const"} | _NOTES:
            chosen = [value for value in values if _fits(value, wide)]
            return {"enum": chosen} if chosen else False
    return {"allOf": [one, other]}


def _picked(part: Json) -> list[Json] | None:
    if isinstance(part, Mapping) and "const" in part:
        return [part["const"]]
    if isinstance(part, Mapping) and isinstance(part.get("enum"), list):
        values: list[Json] = part["enum"]
        return values
    return None


def _fits(value: Json, part: Mapping[str, Json]) -> bool:
    values = _picked(part)
    return (values is None or value in values) and (
        "type" not in part or _type_of(value) in _listed(part["type"])
    )


def _type_of(value: Json) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
    return names.get(type(value), "object" if isinstance(value, Mapping) else "array")


def _conditional(found: _Object, base: Mapping[str, Json]) -> Sequence[Mapping[str, Json]]:
    """`if` one of some values then one thing, else the other: two branches. Nothing where the
    condition is another, or its key has no list of values to tell the rest from."""
    condition = found["if"]
    if not _is_plain(condition) or len(condition.get("properties", {})) != 1:
        return ()
    ((key, wanted),) = condition["properties"].items()
    chosen, every = _picked(wanted), _picked(base.get("properties", {}).get(key))
    then, otherwise = found.get("then", {}), found.get("else", {})
    if chosen is None or every is None or not (_is_plain(then) and _is_plain(otherwise)):
        return ()
    if condition.keys() - _NOTES - {"type", "properties", "required"}:
        return ()
    if set(condition.get("required", [])) - {key}:
        return ()
    picked = (
        ([value for value in every if value in chosen], then),
        ([value for value in every if value not in chosen], otherwise),
    )
    return [
        {
            **more,
            "properties": {**more.get("properties", {}), key: {"enum": values}},
            "required": [key, *(name for name in more.get("required", []) if name != key)],
        }
        for values, more in picked
        if values and key not in more.get("properties", {})
    ]


def _without_marks(branch: _Object, branches: Sequence[_Object]) -> _Object:
    """Without the keys that mark another branch, so that it cannot be both."""
    required = set(branch["required"])
    marks = {name for other in branches for name in other["required"]} - required
    properties = {k: v for k, v in branch["properties"].items() if k not in marks}
    return {**branch, "properties": properties, "additionalProperties": False}


def _are_apart(branches: Sequence[_Object], parts: Sequence[Mapping[str, Json]]) -> bool:
    """Whether no value of one of these closed objects fits the part that another was made of."""

    def fails(branch: _Object, part: Mapping[str, Json]) -> bool:
        present = set(branch["required"])
        declared = part.get("properties", {})
        if set(part.get("required", [])) - branch["properties"].keys() - present:
            return True
        if part.get("additionalProperties") is False and present - declared.keys():
            return True
        for name in present & declared.keys():
            ours, theirs = _picked(branch["properties"].get(name)), _picked(declared[name])
            if ours is not None and theirs is not None and not any(v in theirs for v in ours):
                return True
        return False

    return all(
        n == m or fails(branch, part)
        for n, branch in enumerate(branches)
        for m, part in enumerate(parts)
    )


# --- leaves -------------------------------------------------------------------------------------


def _listed(types: Json) -> list[str]:
    return [types] if isinstance(types, str) else list(types)


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
