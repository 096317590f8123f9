"""Our own types as JSON and back: the form of the journal, the native API and the worker's frames.

Blocks carry a `type`; a label is written only when it is not `public`. Reading is strict: what is
not understood raises `BadRequest` naming it, because a journal that is half understood is worse
than one that is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from appliance.errors import BadRequest
from appliance.types import (
    Block,
    Effect,
    ImageBlock,
    Json,
    Label,
    Message,
    Role,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolResultBlock,
    ToolSpec,
    Usage,
)


def message_to_json(message: Message) -> dict[str, Json]:
    """`{"role", "blocks": [...]}`."""
    return {"role": message.role.value, "blocks": [block_to_json(b) for b in message.blocks]}


def message_from_json(value: Mapping[str, Any]) -> Message:
    """Inverse of `message_to_json`; raises `BadRequest` naming what is wrong."""
    try:
        return Message(Role(value["role"]), tuple(block_from_json(b) for b in value["blocks"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BadRequest(f"message is malformed: {error!r}") from error


def block_to_json(block: Block) -> dict[str, Json]:
    body: dict[str, Json]
    match block:
        case TextBlock(text=text):
            body = {"type": "text", "text": text}
        case ThinkingBlock(text=text, signature=signature, provider=provider):
            body = {"type": "thinking", "text": text}
            if signature is not None:
                body["signature"] = signature
            if provider is not None:
                body["provider"] = provider
        case ImageBlock(media_type=media_type, data_base64=data):
            body = {"type": "image", "media_type": media_type, "data": data}
        case ToolCallBlock(call_id=call_id, name=name, arguments=arguments):
            body = {"type": "tool_call", "id": call_id, "name": name, "arguments": dict(arguments)}
        case ToolResultBlock(call_id=call_id, content=content, is_error=is_error):
            body = {
                "type": "tool_result",
                "id": call_id,
                "content": [block_to_json(part) for part in content],
            }
            if is_error:
                body["is_error"] = True
    if block.label is not Label.PUBLIC:
        body["label"] = block.label.value
    return body


def block_from_json(value: Mapping[str, Any]) -> Block:
    """Inverse of `block_to_json`; raises KeyError, TypeError, ValueError or BadRequest."""
    label = Label(value.get("label", "public"))
    match value["type"]:
        case "text":
            return TextBlock(str(value["text"]), label)
        case "thinking":
            return ThinkingBlock(
                str(value["text"]), value.get("signature"), value.get("provider"), label
            )
        case "image":
            return ImageBlock(str(value["media_type"]), str(value["data"]), label)
        case "tool_call":
            return ToolCallBlock(
                str(value["id"]), str(value["name"]), dict(value["arguments"]), label
            )
        case "tool_result":
            return ToolResultBlock(
                str(value["id"]),
                tuple(_plain(block_from_json(part)) for part in value["content"]),
                bool(value.get("is_error", False)),
                label,
            )
        case other:
            raise BadRequest(f"block type {other!r} is unknown")


def tool_to_json(tool: ToolSpec) -> dict[str, Json]:
    return {
        "name": tool.name,
        "description": tool.description,
        "input_schema": dict(tool.input_schema),
        "effect": tool.effect.value,
        "raw_body": tool.raw_body,
    }


def tool_from_json(value: Mapping[str, Any]) -> ToolSpec:
    return ToolSpec(
        str(value["name"]),
        str(value["description"]),
        dict(value["input_schema"]),
        Effect(value.get("effect", "once")),
        value.get("raw_body"),
    )


def usage_to_json(usage: Usage) -> dict[str, Json]:
    return asdict(usage)


def usage_from_json(value: Mapping[str, Any]) -> Usage:
    known = Usage.__dataclass_fields__
    return Usage(**{name: int(amount) for name, amount in value.items() if name in known})


def messages_to_json(messages: Sequence[Message]) -> list[Json]:
    return [message_to_json(message) for message in messages]


def messages_from_json(values: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    return tuple(message_from_json(value) for value in values)


def _plain(block: Block) -> TextBlock | ImageBlock:
    if isinstance(block, TextBlock | ImageBlock):
        return block
    raise BadRequest(f"a tool result may hold text and images, not {type(block).__name__}")
