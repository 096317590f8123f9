"""A `GenerateRequest` as the body of a streaming chat completion."""

from __future__ import annotations

from appliance.engines.base import EngineFacts
from appliance.types import GenerateRequest, Json
from appliance.wire import openai


def chat_body(
    request: GenerateRequest,
    model: str,
    facts: EngineFacts,
    output_tokens_max: int,
    *,
    beyond_openai: bool = False,
) -> dict[str, Json]:
    """`beyond_openai`: the server takes vLLM's further sampling parameters too."""
    body: dict[str, Json] = {
        "model": model,
        "messages": openai.messages_to_json(request.messages, images=facts.supports_images),
        "stream": True,
        "stream_options": {"include_usage": True},
        **openai.sampling_to_json(request.sampling, beyond_openai=beyond_openai),
    }
    body["max_tokens"] = min(request.sampling.max_tokens or output_tokens_max, output_tokens_max)
    if request.tools and facts.supports_tools:
        body["tools"] = openai.tools_to_json(request.tools)
        body["tool_choice"] = openai.tool_choice_to_json(request.tool_choice)
        if not request.tool_choice.parallel:
            body["parallel_tool_calls"] = False
    if request.response_schema is not None:
        body["response_format"] = openai.response_format_to_json(request.response_schema)
    return body
