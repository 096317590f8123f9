"""A `GenerateRequest` as the body of a Messages call: history, tools, thinking, cache marks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from appliance.config.models import ClaudeModel
from appliance.types import GenerateRequest, Json, Message, ToolSpec
from appliance.wire.anthropic import tool_choice_to_json, tools_to_json
from appliance.wire.anthropic_history import History, history_to_json

CACHE_MARKS_MAX = 4
"""Breakpoints one request may have."""

CACHE_MIN_CHARS = 4_096 * 4
"""Below this a prefix is not marked: the smallest cacheable prefix is 1,024 to 4,096 tokens by
model, and a mark below it is ignored. Four characters a token."""

ANSWER_TOKENS = 4_096
"""Where neither the request nor the configuration says how long an answer may be."""

_CACHED: dict[str, Json] = {"type": "ephemeral"}


def messages_body(request: GenerateRequest, model: ClaudeModel) -> dict[str, Any]:
    """The JSON body of a streaming `POST /v1/messages`."""
    history = history_to_json(request.messages, images=model.images)
    tools = tools_to_json(request.tools) if model.tools else []
    body: dict[str, Any] = {
        "model": model.model,
        "max_tokens": min(request.sampling.max_tokens or ANSWER_TOKENS, model.max_output_tokens),
        "messages": list(history.messages),
        "stream": True,
    }
    if history.system:
        body["system"] = list(history.system)
    if tools:
        body["tools"] = tools
        body["tool_choice"] = tool_choice_to_json(
            request.tool_choice, can_force=model.takes_forced_tools
        )
    if request.thinking and model.thinking and history.can_think:
        body["thinking"] = {"type": "adaptive"}
    if request.response_schema is not None:
        body["output_config"] = {"format": _format(request.response_schema)}
    if request.sampling.stop:
        body["stop_sequences"] = [stop for stop in request.sampling.stop if stop.strip()]
    if model.takes_sampling and "thinking" not in body:
        for name in ("temperature", "top_p", "top_k"):
            if (value := getattr(request.sampling, name)) is not None:
                body[name] = min(value, 1.0) if name == "temperature" else value
    mark_cache(body)
    return sendable(body)


def count_body(
    messages: Sequence[Message], tools: Sequence[ToolSpec], model: ClaudeModel
) -> dict[str, Any]:
    """The JSON body of `POST /v1/messages/count_tokens`."""
    history: History = history_to_json(messages, images=model.images)
    body: dict[str, Any] = {"model": model.model, "messages": list(history.messages)}
    if history.system:
        body["system"] = list(history.system)
    if tools and model.tools:
        body["tools"] = tools_to_json(tools)
    return sendable(body)


def sendable(body: dict[str, Any]) -> dict[str, Any]:
    """The body, if need be with half surrogate pairs (models emit them) replaced: they are no
    UTF-8, and one would fail every further step of its session."""
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        whole: dict[str, Any] = _whole(body)
        return whole
    return body


def mark_cache(body: dict[str, Any]) -> None:
    """Put the cache breakpoints in place.

    A prefix is tools, then system, then messages, and is found again only at a mark of an earlier
    request. Three marks do all there is to do. The end of tools and system, which every session
    of an agent shares. The end of the newest user turn, which writes what the next step of the
    same conversation reads. And the end of the user turn before it, where the previous step
    wrote: it is found from the newest mark too, but only when fewer than 20 blocks came since,
    and one step with many tool calls is more. A write costs a quarter more than plain input, so
    a prefix too short to be cached is not marked, and a conversation's only turn neither when it
    is not in a tool loop: most questions are asked once.
    """
    chars = _chars(body.get("tools")) + _chars(body.get("system"))
    marked = 0
    shared = body.get("system") or body.get("tools")
    if shared and chars >= CACHE_MIN_CHARS:
        _mark(shared[-1])
        marked += 1
    chars += _chars(body["messages"])
    if chars < CACHE_MIN_CHARS:
        return
    asked = [message for message in body["messages"] if message["role"] == "user"]
    if len(asked) < 2:
        return
    for message in asked[-2:]:
        if marked < CACHE_MARKS_MAX:
            _mark(message["content"][-1])
            marked += 1


def _mark(block: dict[str, Json]) -> None:
    block["cache_control"] = dict(_CACHED)


def _chars(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_chars(each) for each in value.values())
    return sum(_chars(each) for each in value) if isinstance(value, list) else 0


def _whole(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case dict():
            return {_whole(key): _whole(each) for key, each in value.items()}
        case list():
            return [_whole(each) for each in value]
        case _:
            return value


def _format(schema: Mapping[str, Json]) -> dict[str, Json]:
    return {"type": "json_schema", "schema": dict(schema)}
