"""Our messages, tools and sampling as OpenAI's chat completions JSON, and back.

The dialect differs from our types in three ways that matter. Tool results are messages of their
own (role `tool`), so one of our user messages may become several. A call's arguments are a string
of JSON, which a model may have left unfinished. Thinking has no place in a request at all, and is
left out. Inwards this raises `BadRequest` for what it cannot understand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from appliance.errors import BadRequest
from appliance.types import (
    Block,
    ImageBlock,
    Json,
    Label,
    Message,
    Role,
    Sampling,
    TextBlock,
    ToolCallBlock,
    ToolChoice,
    ToolChoiceKind,
    ToolResultBlock,
    ToolSpec,
)
from appliance.wire.anthropic import call_id, tool_name

_PLAIN = (
    *("max_tokens", "temperature", "top_p", "presence_penalty"),
    *("frequency_penalty", "seed"),
)
_BEYOND = {"top_k": "top_k", "min_p": "min_p", "repeat_penalty": "repetition_penalty"}
"""Ours → vLLM's words for what OpenAI does not have."""

# --- outwards -----------------------------------------------------------------------------------


def messages_to_json(messages: Sequence[Message], *, images: bool) -> list[dict[str, Json]]:
    """The history. `images` False writes a note where an image was."""
    body: list[dict[str, Json]] = []
    for message in messages:
        if message.role is Role.ASSISTANT:
            body.append(_assistant_to_json(message))
            continue
        for block in message.blocks:
            if isinstance(block, ToolResultBlock):
                body.append(_result_to_json(block))
        content = _content_to_json(message.blocks, images)
        if content:
            body.append({"role": message.role.value, "content": content})
    return body


def tools_to_json(tools: Sequence[ToolSpec]) -> list[dict[str, Json]]:
    return [
        {
            "type": "function",
            "function": {
                "name": tool_name(tool.name),
                "description": tool.description,
                "parameters": {"type": "object", **tool.input_schema},
            },
        }
        for tool in tools
    ]


def tool_choice_to_json(choice: ToolChoice) -> Json:
    match choice.kind:
        case ToolChoiceKind.AUTO:
            return "auto"
        case ToolChoiceKind.ANY:
            return "required"
        case ToolChoiceKind.NONE:
            return "none"
        case ToolChoiceKind.NAMED:
            return {"type": "function", "function": {"name": tool_name(choice.name or "")}}


def response_format_to_json(schema: Mapping[str, Json]) -> dict[str, Json]:
    body = {"name": "answer", "schema": dict(schema), "strict": True}
    return {"type": "json_schema", "json_schema": body}


def sampling_to_json(sampling: Sampling, *, beyond_openai: bool) -> dict[str, Json]:
    """What is set. `beyond_openai`: also the parameters that OpenAI's own API refuses."""
    body: dict[str, Json] = {
        name: value for name in _PLAIN if (value := getattr(sampling, name)) is not None
    }
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.logprobs is not None:
        body["logprobs"] = True
        body["top_logprobs"] = sampling.logprobs
    if beyond_openai:
        for ours, theirs in _BEYOND.items():
            if (value := getattr(sampling, ours)) is not None:
                body[theirs] = value
    return body


# --- inwards ------------------------------------------------------------------------------------


def messages_from_json(messages: Json, label: Label = Label.PUBLIC) -> tuple[Message, ...]:
    """A request's `messages` as ours; neighbouring tool results become one user message."""
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages: write a list of at least one message")
    found: list[Message] = []
    was_tool = False
    for number, message in enumerate(messages):
        where = f"messages.{number}"
        if not isinstance(message, Mapping):
            raise BadRequest(f"{where}: write an object with role and content")
        blocks = _content_from_json(message.get("content"), f"{where}.content", label)
        match message.get("role"):
            case "tool":
                parts = tuple(b for b in blocks if isinstance(b, TextBlock | ImageBlock))
                foreign = str(message.get("tool_call_id") or "")
                result = ToolResultBlock(call_id(foreign), parts, label=label)
                before = found.pop().blocks if was_tool else ()
                found.append(Message(Role.USER, (*before, result)))
            case "system" | "developer":
                found.append(Message(Role.SYSTEM, tuple(blocks)))
            case "user":
                found.append(Message(Role.USER, tuple(blocks)))
            case "assistant":
                calls = message.get("tool_calls") or []
                blocks += [_call_from_json(c, f"{where}.tool_calls", label) for c in calls]
                found.append(Message(Role.ASSISTANT, tuple(blocks)))
            case role:
                raise BadRequest(f"{where}.role: {role!r} is no role")
        was_tool = message.get("role") == "tool"
    return tuple(found)


def tools_from_json(tools: Json) -> tuple[ToolSpec, ...]:
    found = []
    for number, tool in enumerate(tools or ()):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or "name" not in function:
            raise BadRequest(f"tools.{number}: write a function with a name")
        schema = function.get("parameters") or {}
        if not isinstance(schema, Mapping):
            raise BadRequest(f"tools.{number}.function.parameters: write an object")
        description = str(function.get("description") or "")
        found.append(ToolSpec(str(function["name"]), description, dict(schema)))
    return tuple(found)


def tool_choice_from_json(value: Json, *, parallel: bool = True) -> ToolChoice:
    kinds = {
        None: ToolChoiceKind.AUTO,
        "auto": ToolChoiceKind.AUTO,
        "required": ToolChoiceKind.ANY,
        "none": ToolChoiceKind.NONE,
    }
    if isinstance(value, Mapping) and isinstance(value.get("function"), Mapping):
        return ToolChoice(ToolChoiceKind.NAMED, str(value["function"].get("name")), parallel)
    if not isinstance(value, str | None) or value not in kinds:
        raise BadRequest("tool_choice: write auto, required, none or a function")
    return ToolChoice(kinds[value], None, parallel)


# --- leaves -------------------------------------------------------------------------------------


def _assistant_to_json(message: Message) -> dict[str, Json]:
    body: dict[str, Json] = {"role": "assistant", "content": message.text or None}
    calls = [
        {
            "id": call.call_id,
            "type": "function",
            "function": {
                "name": tool_name(call.name),
                "arguments": json.dumps(dict(call.arguments)),
            },
        }
        for call in message.tool_calls
    ]
    if calls:
        body["tool_calls"] = calls
    elif body["content"] is None:
        body["content"] = ""
    return body


def _result_to_json(block: ToolResultBlock) -> dict[str, Json]:
    text = "\n".join(p.text if isinstance(p, TextBlock) else "[an image]" for p in block.content)
    if block.is_error:
        text = f"error: {text}"
    return {"role": "tool", "tool_call_id": block.call_id, "content": text}


def _content_to_json(blocks: Sequence[Block], images: bool) -> Json:
    """Text alone as a string, which every server takes; parts only where there is an image."""
    if images and any(isinstance(block, ImageBlock) for block in blocks):
        return [part for block in blocks if (part := _part_to_json(block))]
    texts = []
    for block in blocks:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ImageBlock):
            texts.append("[an image]")
    return "".join(texts)


def _part_to_json(block: Block) -> dict[str, Json] | None:
    if isinstance(block, TextBlock):
        return {"type": "text", "text": block.text}
    if isinstance(block, ImageBlock):
        url = f"data:{block.media_type};base64,{block.data_base64}"
        return {"type": "image_url", "image_url": {"url": url}}
    return None


def _content_from_json(content: Json, where: str, label: Label) -> list[Block]:
    if content is None:
        return []
    if isinstance(content, str):
        return [TextBlock(content, label)] if content else []
    if not isinstance(content, list):
        raise BadRequest(f"{where}: write text or a list of parts")
    return [_part_from_json(part, f"{where}.{n}", label) for n, part in enumerate(content)]


def _part_from_json(part: Json, where: str, label: Label) -> Block:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        return TextBlock(str(part.get("text") or ""), label)
    if kind == "image_url" and isinstance(part.get("image_url"), Mapping):
        head, _, data = str(part["image_url"].get("url")).partition(";base64,")
        if not data or not head.startswith("data:"):
            raise BadRequest(f"{where}: only images in a base64 data URL are taken")
        return ImageBlock(head.removeprefix("data:"), data, label)
    raise BadRequest(f"{where}: write a part of type text or image_url")


def _call_from_json(call: Json, where: str, label: Label) -> ToolCallBlock:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or "name" not in function:
        raise BadRequest(f"{where}: write a function with a name and arguments")
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except ValueError as error:
        raise BadRequest(f"{where}: the arguments are no JSON: {error}") from error
    if not isinstance(arguments, Mapping):
        raise BadRequest(f"{where}: the arguments are no object")
    foreign = str(call.get("id") or "")
    return ToolCallBlock(call_id(foreign), str(function["name"]), dict(arguments), label)
