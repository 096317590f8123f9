"""Our blocks, messages and tools as Anthropic's JSON, and back.

How a whole history is brought into the form the API insists on is in `anthropic_history`. Inwards
this is lenient in what clients really send (`api` serves `/v1/messages` with it), and raises
`BadRequest` for what it cannot understand.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from appliance.errors import BadRequest
from appliance.types import (
    Block,
    ImageBlock,
    Json,
    Label,
    Message,
    Role,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolChoice,
    ToolChoiceKind,
    ToolResultBlock,
    ToolSpec,
)

PROVIDER = "anthropic"
REDACTED = "anthropic.redacted"
"""`ThinkingBlock.provider` of thinking whose text the provider keeps to itself."""

_ID = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")


# --- outwards -----------------------------------------------------------------------------------


def tools_to_json(tools: Sequence[ToolSpec]) -> list[dict[str, Json]]:
    """Tool definitions; `strict` where the schema is one that strict decoding takes."""
    strict_left, optional_left = STRICT_TOOLS_MAX, STRICT_OPTIONAL_MAX
    body: list[dict[str, Json]] = []
    for tool in tools:
        schema = {"type": "object", **tool.input_schema}
        entry: dict[str, Json] = {
            "name": tool_name(tool.name),
            "description": tool.description,
            "input_schema": schema,
        }
        optional = _strict_optional(schema)
        if optional is not None and strict_left > 0 and optional <= optional_left:
            entry["strict"] = True
            strict_left, optional_left = strict_left - 1, optional_left - optional
        body.append(entry)
    return body


def tool_choice_to_json(choice: ToolChoice, *, can_force: bool) -> dict[str, Json]:
    """`can_force` False: the model refuses demanded calls, so it is only asked."""
    body: dict[str, Json]
    match choice.kind:
        case ToolChoiceKind.NONE:
            return {"type": "none"}
        case ToolChoiceKind.ANY if can_force:
            body = {"type": "any"}
        case ToolChoiceKind.NAMED if can_force:
            body = {"type": "tool", "name": tool_name(choice.name or "")}
        case _:
            body = {"type": "auto"}
    if not choice.parallel:
        body["disable_parallel_tool_use"] = True
    return body


def tool_name(name: str) -> str:
    """The name as the API takes it. One that it does not (`mcp.git.log`) is rewritten with a
    hash, so that two names never meet; `tool_names` is the way back."""
    if _TOOL_NAME.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^a-zA-Z0-9_-]', '_', name)[:110]}-{digest}"


def tool_names(tools: Iterable[ToolSpec]) -> dict[str, str]:
    """Names as the API knows them → our names."""
    return {tool_name(tool.name): tool.name for tool in tools}


def content_to_json(blocks: Sequence[Block]) -> list[dict[str, Json]]:
    """An answer's blocks as a client of `/v1/messages` wants them."""
    return [block_to_json(block) for block in blocks]


def block_to_json(block: Block) -> dict[str, Json]:
    match block:
        case TextBlock(text=text):
            return {"type": "text", "text": text}
        case ThinkingBlock(provider="anthropic.redacted", signature=data):
            return {"type": "redacted_thinking", "data": data or ""}
        case ThinkingBlock(text=text, signature=signature):
            return {"type": "thinking", "thinking": text, "signature": signature or ""}
        case ImageBlock(media_type=media_type, data_base64=data):
            source = {"type": "base64", "media_type": media_type, "data": data}
            return {"type": "image", "source": source}
        case ToolCallBlock(call_id=call_id, name=name, arguments=arguments):
            return {"type": "tool_use", "id": call_id, "name": name, "input": dict(arguments)}
        case ToolResultBlock(call_id=call_id, content=content, is_error=is_error):
            body: dict[str, Json] = {
                "type": "tool_result",
                "tool_use_id": call_id,
                "content": [block_to_json(part) for part in content],
            }
            if is_error:
                body["is_error"] = True
            return body


# --- inwards ------------------------------------------------------------------------------------


def messages_from_json(
    system: Json, messages: Json, label: Label = Label.PUBLIC
) -> tuple[Message, ...]:
    """A request's `system` and `messages` as our messages. Raises `BadRequest` naming the place."""
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages: write a list of at least one message")
    found = []
    if system:
        blocks = _content_from_json(system, "system", label)
        found.append(Message(Role.SYSTEM, tuple(blocks)))
    for number, message in enumerate(messages):
        where = f"messages.{number}"
        if not isinstance(message, Mapping):
            raise BadRequest(f"{where}: write an object with role and content")
        try:
            role = Role(message.get("role", ""))
        except ValueError:
            raise BadRequest(f"{where}.role: {message.get('role')!r} is no role") from None
        blocks = _content_from_json(message.get("content"), f"{where}.content", label)
        found.append(Message(role, tuple(blocks)))
    return tuple(found)


def block_from_json(value: Json, where: str, label: Label = Label.PUBLIC) -> Block:
    """One content block; of a kind that is not ours, a note that it was there."""
    if not isinstance(value, Mapping):
        raise BadRequest(f"{where}: write an object with a type")
    try:
        match value.get("type"):
            case "text":
                return TextBlock(str(value["text"]), label)
            case "thinking":
                signature = value.get("signature") or None
                return ThinkingBlock(str(value["thinking"]), signature, PROVIDER, label)
            case "redacted_thinking":
                return ThinkingBlock("", str(value["data"]), REDACTED, label)
            case "image":
                return _image_from_json(value["source"], where, label)
            case "tool_use":
                arguments = value.get("input") or {}
                if not isinstance(arguments, Mapping):
                    raise BadRequest(f"{where}.input: write an object")
                return ToolCallBlock(
                    call_id(str(value["id"])), str(value["name"]), dict(arguments), label
                )
            case "tool_result":
                content = _content_from_json(value.get("content") or [], f"{where}.content", label)
                parts = tuple(p for p in content if isinstance(p, TextBlock | ImageBlock))
                return ToolResultBlock(
                    call_id(str(value["tool_use_id"])), parts, bool(value.get("is_error")), label
                )
            case str(kind):
                return TextBlock(f"[a block of type {kind} was left out]", label)
            case _:
                raise BadRequest(f"{where}: a block has a type")
    except KeyError as error:
        raise BadRequest(f"{where}: a {value.get('type')} block needs {error}") from error


def tools_from_json(tools: Json) -> tuple[ToolSpec, ...]:
    """Client tools of a request; tools the provider itself would run are left out."""
    found = []
    for number, tool in enumerate(tools or ()):
        if not isinstance(tool, Mapping) or "name" not in tool:
            raise BadRequest(f"tools.{number}: write an object with a name")
        if "input_schema" in tool:
            schema = tool["input_schema"]
            if not isinstance(schema, Mapping):
                raise BadRequest(f"tools.{number}.input_schema: write an object")
            found.append(
                ToolSpec(str(tool["name"]), str(tool.get("description") or ""), dict(schema))
            )
    return tuple(found)


def tool_choice_from_json(value: Json) -> ToolChoice:
    if value is None:
        return ToolChoice()
    kinds = {"tool": ToolChoiceKind.NAMED, **{kind.value: kind for kind in ToolChoiceKind}}
    kind = kinds.get(value.get("type", "")) if isinstance(value, Mapping) else None
    if kind is None:
        raise BadRequest("tool_choice.type: write auto, any, tool or none")
    return ToolChoice(kind, value.get("name"), not value.get("disable_parallel_tool_use", False))


def call_id(foreign: str) -> str:
    """An id in our form; one that is already is kept."""
    if _ID.fullmatch(foreign):
        return foreign
    return f"call_{hashlib.sha256(foreign.encode()).hexdigest()[:20]}"


# --- strict schemas -----------------------------------------------------------------------------

STRICT_TOOLS_MAX = 20
STRICT_OPTIONAL_MAX = 24
"""Strict tools, and optional properties in all of them, that one request may have (provider's
documentation of structured outputs)."""

_STRICT_KEYS = frozenset(
    {"type", "properties", "required", "additionalProperties", "items", "enum", "const"}
    | {"description", "title", "default", "anyOf", "$ref", "$defs", "definitions", "format"}
)
_STRICT_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"}
)


def _strict_optional(schema: Json) -> int | None:
    """Optional properties in a schema that strict decoding takes; None if it takes it not."""
    if isinstance(schema, bool) or not isinstance(schema, Mapping):
        return None
    if not set(schema) <= _STRICT_KEYS:
        return None
    if "format" in schema and schema["format"] not in _STRICT_FORMATS:
        return None
    if "$ref" in schema and not str(schema["$ref"]).startswith(("#/$defs/", "#/definitions/")):
        return None
    properties = schema.get("properties") or {}
    if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
        return None
    count = len(set(properties) - set(schema.get("required") or ()))
    inner = [*properties.values(), *(schema.get("anyOf") or ())]
    inner += [*(schema.get("$defs") or {}).values(), *(schema.get("definitions") or {}).values()]
    inner += [schema["items"]] if "items" in schema else []
    for each in inner:
        optional = _strict_optional(each)
        if optional is None:
            return None
        count += optional
    return count


# --- leaves -------------------------------------------------------------------------------------


def _content_from_json(content: Json, where: str, label: Label) -> list[Block]:
    if isinstance(content, str):
        return [TextBlock(content, label)] if content else []
    if not isinstance(content, list):
        raise BadRequest(f"{where}: write text or a list of blocks")
    return [block_from_json(b, f"{where}.{i}", label) for i, b in enumerate(_merged(content))]


def _merged(content: list[Any]) -> list[Any]:
    """Mends what a wide-spread client library sends: a streamed call as an empty `tool_use` and
    a second one that has its input and no id."""
    merged: list[Any] = []
    for block in content:
        is_stray = isinstance(block, Mapping) and block.get("type") == "tool_use"
        if is_stray and "id" not in block and merged and merged[-1].get("type") == "tool_use":
            merged[-1] = {**merged[-1], "input": _input(block.get("input"))}
        else:
            merged.append(block)
    return merged


def _input(value: Json) -> Json:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return {}


def _image_from_json(source: Json, where: str, label: Label) -> Block:
    if not isinstance(source, Mapping) or source.get("type") != "base64":
        raise BadRequest(f"{where}.source: only base64 images are taken")
    return ImageBlock(str(source["media_type"]), str(source["data"]), label)
