"""Says in a person's words what pydantic found wrong, and what would be right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from appliance.config.check import Problem, did_you_mean
from appliance.config.models import (
    ClaudeModel,
    LlamaCppModel,
    RemoteModel,
    ScriptedModel,
    VllmModel,
)
from appliance.config.positions import KeyPath
from appliance.config.schema import Config
from appliance.config.units import Section
from appliance.types import Json

ENGINES: Mapping[str, type[Section]] = {
    "llamacpp": LlamaCppModel,
    "vllm": VllmModel,
    "remote": RemoteModel,
    "claude": ClaudeModel,
    "scripted": ScriptedModel,
}

_SHOWN_CHARACTERS = 40
_TYPE_WORDS = {
    "int_type": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "float_parsing": "should be a number",
    "bool_type": "should be true or false",
    "bool_parsing": "should be true or false",
    "string_type": "should be a text in quotes",
    "tuple_type": "should be a list in [ ]",
    "mapping_type": "should be a table",
    "model_type": "should be a table",
    "model_attributes_type": "should be a table",
    "string_pattern_mismatch": "is not a name; use letters, digits, _ . -, at most 64",
    "date_type": "should be a date such as 2026-11-23",
    "date_parsing": "should be a date such as 2026-11-23",
    "date_from_datetime_parsing": "should be a date such as 2026-11-23",
}


def explain(error: ErrorDetails, raw: Mapping[str, Json]) -> Problem:
    """One validation error as a problem. Values of unknown keys are never shown: a misspelt key
    may hold a secret."""
    kind = error["type"]
    path = _path_in_file(error["loc"], raw, keeps_last=kind == "missing")
    key = str(path[-1]) if path else ""
    match kind:
        case "extra_forbidden":
            section = section_at(path[:-1], raw)
            return Problem(path, "unknown key", _known_keys(key, section))
        case "missing":
            return Problem(path, "is missing", _example(path, raw))
        case "union_tag_not_found":
            return Problem((*path, "engine"), "is missing", f"write one of {', '.join(ENGINES)}")
        case "union_tag_invalid":
            tag = str(error.get("ctx", {}).get("tag", ""))
            return Problem(
                (*path, "engine"), f"no such engine: {tag!r}", did_you_mean(tag, ENGINES)
            )
        case "literal_error" | "enum":
            choices = _choices(path, raw)
            what = f"{_shown(error['input'])} is none of its values"
            return Problem(path, what, did_you_mean(str(error["input"]), choices))
        case "value_error":
            return Problem(path, str(error.get("ctx", {}).get("error", error["msg"])))
    what = _TYPE_WORDS.get(kind, error["msg"].replace("Input should", "should"))
    return Problem(path, f"{_shown(error['input'])} {what}", _example(path, raw))


def section_at(path: KeyPath, raw: Mapping[str, Json]) -> type[Section] | None:
    """The section class whose keys stand below this path; None where there is none."""
    section: type[Section] | None = Config
    position = 0
    while position < len(path) and section is not None:
        field = field_of(section, str(path[position]))
        position += 1
        if field is None:
            return None
        if section is Config and path[0] == "models":
            entry = raw.get("models", {}).get(path[1], {}) if len(path) > 1 else {}
            section = ENGINES.get(str(entry.get("engine"))) if isinstance(entry, dict) else None
            position += 1
            continue
        inner = _section_in(field.annotation)
        if inner is not None and inner[1]:
            position += 1
        section = inner[0] if inner else None
    return section if position == len(path) else None


def field_of(section: type[Section], key: str) -> FieldInfo | None:
    """The field the file calls `key`."""
    for name, field in section.model_fields.items():
        if (field.alias or name) == key:
            return field
    return None


def keys_of(section: type[Section]) -> list[str]:
    """The keys of a section as the file writes them, in order."""
    return [field.alias or name for name, field in section.model_fields.items()]


def _section_in(annotation: Any) -> tuple[type[Section], bool] | None:
    """The section an annotation holds, and whether a name or an index comes before its keys."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    for inner in get_args(annotation):
        if isinstance(inner, type) and issubclass(inner, Section):
            return inner, True
    return None


def _path_in_file(
    location: Sequence[str | int], raw: Mapping[str, Json], *, keeps_last: bool
) -> KeyPath:
    """pydantic's location without the tags of unions, which the file does not have."""
    path: KeyPath = ()
    node: Json = raw
    for number, part in enumerate(location):
        children = dict(enumerate(node)) if isinstance(node, list) else node
        is_last = number == len(location) - 1
        if isinstance(children, dict) and part in children:
            node = children[part]
        elif not (keeps_last and is_last):
            continue
        path = (*path, part)
    return path


def _known_keys(wrong: str, section: type[Section] | None) -> str:
    if section is None:
        return ""
    owners = [name for name, engine in ENGINES.items() if wrong in keys_of(engine)]
    if section in ENGINES.values() and owners:
        return f"it is a key of engine {' and '.join(owners)}"
    return did_you_mean(wrong, keys_of(section))


def _field_at(path: KeyPath, raw: Mapping[str, Json]) -> tuple[FieldInfo, str] | None:
    """The field a path ends in, or the one whose list or table it ends in."""
    for depth in range(len(path), 0, -1):
        section = section_at(path[: depth - 1], raw)
        if section is not None and (field := field_of(section, str(path[depth - 1]))):
            return field, str(path[depth - 1])
    return None


def _choices(path: KeyPath, raw: Mapping[str, Json]) -> list[str]:
    found = _field_at(path, raw)
    return _values_of(found[0].annotation) if found else []


def _values_of(annotation: Any) -> list[str]:
    if isinstance(annotation, type) and hasattr(annotation, "__members__"):
        return [str(member.value) for member in annotation.__members__.values()]
    if get_origin(annotation) is Annotated:
        return _values_of(get_args(annotation)[0])
    values = []
    for inner in get_args(annotation):
        values += [inner] if isinstance(inner, str) else _values_of(inner)
    return values


def _example(path: KeyPath, raw: Mapping[str, Json]) -> str:
    found = _field_at(path, raw)
    if found is None:
        return ""
    field, key = found
    if field.default in (PydanticUndefined, None, ""):
        return (field.description or "").rstrip(".")
    return f"for example {key} = {default_text(field)}"


def default_text(field: FieldInfo) -> str:
    """The field's default as the file writes it: micro-dollars become dollars again."""
    if (field.alias or "").endswith("_usd") and isinstance(field.default, int):
        return f"{field.default / 10**6:g}"
    return toml_value(field.default)


def toml_value(value: Json) -> str:
    """A default as the file would write it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, str):
        return f'"{value}"'
    return str(value)


def _shown(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
