"""What the real API would answer 400 to: strict validation of a Messages request.

Pure: `violation(body, signatures)` is the message of the first thing wrong, or None. Written from
the API's documented rules, independently of the client code it judges.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection
from typing import Any

_ID = re.compile(r"^[a-zA-Z0-9_-]+$")
_TOOL_NAME = re.compile(r"^[a-zA-Z0-9_-]{1,128}$")
_IMAGES = {"image/jpeg", "image/png", "image/gif", "image/webp"}
_KNOWN = (
    {"model", "messages", "max_tokens", "system", "tools", "tool_choice", "thinking", "stream"}
    | {"stop_sequences", "metadata", "output_config", "service_tier", "cache_control"}
    | {"temperature", "top_p", "top_k"}
)
_SAMPLING = ("temperature", "top_p", "top_k")


def violation(body: Any, signatures: Collection[str], *, counting: bool = False) -> str | None:
    """`signatures` are those this server has given out; any other is refused."""
    if not isinstance(body, dict):
        return "request body is not an object"
    if unknown := set(body) - _KNOWN:
        return f"{sorted(unknown)[0]}: extra inputs are not permitted"
    if not isinstance(body.get("model"), str):
        return "model: field required"
    if not counting and not (isinstance(body.get("max_tokens"), int) and body["max_tokens"] >= 1):
        return "max_tokens: must be at least 1"
    if any(name in body for name in _SAMPLING):
        return "temperature: this model takes no sampling parameters"
    return (
        _tools(body)
        or _system(body.get("system", []))
        or _thinking(body)
        or _messages(body.get("messages"), signatures)
        or _marks(body)
    )


def _tools(body: dict[str, Any]) -> str | None:
    names = set()
    for number, tool in enumerate(body.get("tools") or []):
        if not _TOOL_NAME.match(str(tool.get("name"))):
            return f"tools.{number}.name: string should match pattern"
        if tool["name"] in names:
            return "tools: tool names must be unique"
        names.add(tool["name"])
        if tool.get("input_schema", {}).get("type") != "object":
            return f"tools.{number}.input_schema.type: field required"
        if tool.get("strict") and _open_object(tool["input_schema"]):
            return f"tools.{number}: strict needs additionalProperties false"
    choice = body.get("tool_choice")
    if choice is not None:
        if choice.get("type") not in ("auto", "none"):
            return "tool_choice: this model cannot be forced to use tools"
        if not names:
            return "tool_choice: may only be specified while providing tools"
    return None


def _open_object(schema: Any) -> bool:
    if isinstance(schema, dict):
        if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
            return True
        return any(_open_object(each) for each in schema.values())
    return isinstance(schema, list) and any(_open_object(each) for each in schema)


def _system(system: Any) -> str | None:
    blocks = system if isinstance(system, list) else [{"type": "text", "text": system}]
    for block in blocks:
        if block.get("type") != "text" or not str(block.get("text", "")).strip():
            return "system: text content blocks must be non-empty"
    return None


def _thinking(body: dict[str, Any]) -> str | None:
    thinking = body.get("thinking")
    if thinking is None:
        return None
    if thinking.get("type") not in ("adaptive", "enabled", "disabled"):
        return "thinking.type: unexpected value"
    if thinking["type"] == "disabled":
        return None
    for message in reversed(body.get("messages") or []):
        content = message.get("content")
        if message.get("role") == "user":
            if isinstance(content, str) or not any(b["type"] == "tool_result" for b in content):
                return None
        elif content[0]["type"] not in ("thinking", "redacted_thinking"):
            return "messages: expected `thinking`, but found `tool_use` in an open tool loop"
    return None


def _messages(messages: Any, signatures: Collection[str]) -> str | None:
    if not isinstance(messages, list) or not messages:
        return "messages: at least one message is required"
    if messages[0].get("role") != "user":
        return "messages: first message must use the user role"
    if messages[-1].get("role") != "user":
        return "messages: this model does not support assistant message prefill"
    awaited: list[str] = []
    used: set[str] = set()
    before = None
    for number, message in enumerate(messages):
        where, role = f"messages.{number}", message.get("role")
        if role not in ("user", "assistant"):
            return f"{where}.role: unexpected role {role!r}"
        if role == before:
            return f"{where}: roles must alternate"
        before = role
        content = message.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list) or not content:
            return f"{where}.content: must be non-empty"
        wrong = (
            _assistant(content, where, signatures, used)
            if role == "assistant"
            else _user(content, where, awaited)
        )
        if wrong:
            return wrong
        awaited = [b["id"] for b in content if b["type"] == "tool_use"]
    return None


def _assistant(
    content: list[dict[str, Any]], where: str, signatures: Collection[str], used: set[str]
) -> str | None:
    for number, block in enumerate(content):
        at = f"{where}.content.{number}"
        match block.get("type"):
            case "text":
                if not str(block.get("text", "")).strip():
                    return f"{at}: text content blocks must be non-empty"
            case "thinking":
                if block.get("signature") not in signatures:
                    return f"{at}: Invalid `signature` in `thinking` block"
            case "redacted_thinking":
                if block.get("data") not in signatures:
                    return f"{at}: Invalid `data` in `redacted_thinking` block"
            case "tool_use":
                if not _ID.match(str(block.get("id"))):
                    return f"{at}.tool_use.id: string should match pattern '^[a-zA-Z0-9_-]+$'"
                if block["id"] in used:
                    return f"{at}: `tool_use` ids must be unique"
                used.add(block["id"])
                if not _TOOL_NAME.match(str(block.get("name"))):
                    return f"{at}.tool_use.name: string should match pattern"
                if not isinstance(block.get("input"), dict):
                    return f"{at}.tool_use.input: should be a valid dictionary"
            case kind:
                return f"{at}: unexpected type {kind!r} in an assistant message"
    if content[-1]["type"] in ("thinking", "redacted_thinking"):
        return f"{where}: the final block in an assistant message cannot be `thinking`"
    return None


def _user(content: list[dict[str, Any]], where: str, awaited: list[str]) -> str | None:
    missing = set(awaited)
    past_results = False
    for number, block in enumerate(content):
        at = f"{where}.content.{number}"
        match block.get("type"):
            case "text":
                past_results = True
                if not str(block.get("text", "")).strip():
                    return f"{at}: text content blocks must be non-empty"
            case "image":
                past_results = True
                if wrong := _image(block, at):
                    return wrong
            case "tool_result":
                if past_results and awaited:
                    return f"{at}: `tool_result` blocks must come first"
                if block.get("tool_use_id") not in missing:
                    return f"{at}: unexpected `tool_use_id`: {block.get('tool_use_id')}"
                missing.discard(block["tool_use_id"])
                if wrong := _result(block, at):
                    return wrong
            case kind:
                return f"{at}: unexpected type {kind!r} in a user message"
    if missing:
        return f"{where}: `tool_use` ids were found without `tool_result` blocks: {missing}"
    return None


def _result(block: dict[str, Any], at: str) -> str | None:
    content = block.get("content", [])
    if isinstance(content, str):
        return None
    for part in content:
        if part.get("type") == "text":
            if not str(part.get("text", "")).strip():
                return f"{at}: text content blocks must be non-empty"
        elif part.get("type") != "image":
            return f"{at}: unexpected type {part.get('type')!r}"
        elif wrong := _image(part, at):
            return wrong
    if block.get("is_error") and not content:
        return f"{at}: content cannot be empty if `is_error` is true"
    return None


def _image(block: dict[str, Any], at: str) -> str | None:
    source = block.get("source") or {}
    if source.get("media_type") not in _IMAGES:
        return f"{at}.source.media_type: unexpected value"
    try:
        base64.b64decode(source.get("data") or "", validate=True)
    except (binascii.Error, ValueError):
        return f"{at}.source.data: invalid base64"
    return None


def _marks(body: dict[str, Any]) -> str | None:
    count = 0
    for block in _blocks(body):
        if "cache_control" in block:
            count += 1
            if block.get("type") in ("thinking", "redacted_thinking"):
                return "cache_control: thinking blocks cannot be marked"
    return "A maximum of 4 blocks with cache_control may be provided" if count > 4 else None


def _blocks(body: dict[str, Any]) -> list[dict[str, Any]]:
    blocks = list(body.get("tools") or [])
    for content in [body.get("system"), *(m.get("content") for m in body.get("messages") or [])]:
        if isinstance(content, list):
            blocks += content
    return blocks
