"""The words that tell a model of its tools where the template has none."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.engines.chat.syntax import CallSyntax
from appliance.engines.chat.traits import json_text
from appliance.types import Json, ToolSpec


def tool_json(tool: ToolSpec) -> Json:
    """A tool as templates and models know it: OpenAI's function object."""
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.input_schema,
        },
    }


def describe(tools: Sequence[Json], syntax: CallSyntax) -> str:
    """`tools` as of `tool_json`."""
    listed = "\n".join(json_text(tool) for tool in tools)
    example = (
        f"{syntax.first}<tool name>{syntax.middle}"
        + (f"<nine letters>{syntax.after_id}" if syntax.after_id is not None else "")
        + '{"<argument>": <value>}'
        + syntax.last
    )
    return (
        "# Tools\n\nYou may call these tools, described by JSON Schema:\n\n<tools>\n"
        f"{listed}\n</tools>\n\n"
        f"To call a tool, write exactly this and nothing after it:\n\n{example}"
    )
