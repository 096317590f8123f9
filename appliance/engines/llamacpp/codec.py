"""Requests, deltas, completions and errors as the JSON inside frames, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from appliance import errors
from appliance.types import (
    Completion,
    Delta,
    GenerateRequest,
    Json,
    Label,
    Priority,
    Progress,
    Sampling,
    StopReason,
    TextDelta,
    ThinkingDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolChoice,
    ToolChoiceKind,
)
from appliance.wire import native


def request_to_json(request: GenerateRequest) -> dict[str, Json]:
    """All the worker needs; what only the daemon needs (agent, turn) stays here."""
    sampling = asdict(request.sampling)
    sampling["logit_bias"] = [[t, bias] for t, bias in request.sampling.logit_bias.items()]
    return {
        "request_id": request.request_id,
        "messages": native.messages_to_json(request.messages),
        "tools": [native.tool_to_json(tool) for tool in request.tools],
        "tool_choice": {
            "kind": request.tool_choice.kind.value,
            "name": request.tool_choice.name,
            "parallel": request.tool_choice.parallel,
        },
        "response_schema": (
            None if request.response_schema is None else dict(request.response_schema)
        ),
        "sampling": sampling,
        "thinking": request.thinking,
        "priority": int(request.priority),
        "cache_key": request.cache_key,
        "adapter": request.adapter,
        "deadline_s": request.deadline_s,
        "label": request.label.value,
    }


def request_from_json(body: Mapping[str, Any]) -> GenerateRequest:
    sampling = dict(body["sampling"])
    sampling["logit_bias"] = {int(token): float(bias) for token, bias in sampling["logit_bias"]}
    sampling["stop"] = tuple(sampling["stop"])
    choice = body["tool_choice"]
    return GenerateRequest(
        request_id=body["request_id"],
        messages=native.messages_from_json(body["messages"]),
        tools=tuple(native.tool_from_json(tool) for tool in body["tools"]),
        tool_choice=ToolChoice(ToolChoiceKind(choice["kind"]), choice["name"], choice["parallel"]),
        response_schema=body["response_schema"],
        sampling=Sampling(**sampling),
        thinking=body["thinking"],
        priority=Priority(body["priority"]),
        cache_key=body["cache_key"],
        adapter=body["adapter"],
        deadline_s=body["deadline_s"],
        label=Label(body["label"]),
    )


def delta_to_json(delta: Delta) -> list[Json]:
    match delta:
        case TextDelta(text):
            return ["text", text]
        case ThinkingDelta(text):
            return ["thinking", text]
        case ToolCallDelta(call_id, name, arguments_json):
            return ["call", call_id, name, arguments_json]
        case Progress(stage, done, total):
            return ["progress", stage, done, total]


def delta_from_json(body: list[Any]) -> Delta:
    match body:
        case ["text", text]:
            return TextDelta(text)
        case ["thinking", text]:
            return ThinkingDelta(text)
        case ["call", call_id, name, arguments_json]:
            return ToolCallDelta(call_id, name, arguments_json)
        case ["progress", stage, done, total]:
            return Progress(stage, done, total)
    raise ValueError(f"not a delta: {body!r}")


def completion_to_json(completion: Completion) -> dict[str, Json]:
    return {
        "message": native.message_to_json(completion.message),
        "stop_reason": completion.stop_reason.value,
        "usage": native.usage_to_json(completion.usage),
        "stop_sequence": completion.stop_sequence,
        "logprobs": [
            [entry.token, entry.logprob, [list(pair) for pair in entry.top]]
            for entry in completion.logprobs
        ],
        "mean_logprob": completion.mean_logprob,
        "min_logprob": completion.min_logprob,
    }


def completion_from_json(body: Mapping[str, Any]) -> Completion:
    return Completion(
        message=native.message_from_json(body["message"]),
        stop_reason=StopReason(body["stop_reason"]),
        usage=native.usage_from_json(body["usage"]),
        stop_sequence=body["stop_sequence"],
        logprobs=tuple(
            TokenLogprob(token, logprob, tuple((t, p) for t, p in top))
            for token, logprob, top in body["logprobs"]
        ),
        mean_logprob=body["mean_logprob"],
        min_logprob=body["min_logprob"],
    )


_RAISED_BY_WORKER: dict[str, type[errors.ApplianceError]] = {
    kind.code: kind
    for kind in (
        errors.BadRequest,
        errors.NotFound,
        errors.PromptTooLong,
        errors.Overloaded,
        errors.EngineError,
        errors.ModelBroken,
        errors.NoCapacity,
        errors.DeadlineExceeded,
    )
}


def error_from_json(body: Mapping[str, Any]) -> errors.ApplianceError:
    """The error of the same code; an unknown code becomes `EngineError`."""
    kind = _RAISED_BY_WORKER.get(body["code"], errors.EngineError)
    return kind(
        body["message"],
        hint=body.get("hint", ""),
        retry_after_s=body.get("retry_after_s"),
        details=body.get("details"),
    )
