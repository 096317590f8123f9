"""Large bodies outside JSON: what small models get wrong is code inside JSON strings.

A tool whose `raw_body` names a string argument is shown to the model without that argument; the
call is written as JSON, and the text follows raw between two sentinel lines:

    <tool_call>
    {"name": "write_file", "arguments": {"path": "a.py"}}
    </tool_call>
    <<<content
    print("no escapes")
    content>>>

The call with a body ends its turn. Formats whose calls end in an end token (harmony) keep the
argument in the JSON; formats with tags (Qwen3-Coder) write every string raw anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from appliance.engines.chat.syntax import CallSyntax
from appliance.types import Json, ToolSpec


def raw_argument(tool: ToolSpec, syntax: CallSyntax) -> str | None:
    """The argument written raw in this syntax, if any."""
    name = tool.raw_body
    if name is None or not syntax.raw_bodies:
        return None
    properties = tool.input_schema.get("properties") or {}
    return name if name in properties else None


def opening(name: str) -> str:
    return f"\n<<<{name}\n"


def closing(name: str) -> str:
    return f"\n{name}>>>"


def without_body(tool: ToolSpec, syntax: CallSyntax) -> ToolSpec:
    """The tool as far as its call is JSON; unchanged where nothing is raw."""
    name = raw_argument(tool, syntax)
    if name is None:
        return tool
    schema: dict[str, Json] = dict(tool.input_schema)
    properties: Mapping[str, Json] = schema["properties"]
    schema["properties"] = {key: part for key, part in properties.items() if key != name}
    if "required" in schema:
        schema["required"] = [key for key in schema["required"] if key != name]
    note = (
        f"Leave {name} out of the JSON. Write it raw after the call, between a line <<<{name} "
        f"and a line {name}>>>."
    )
    return replace(tool, input_schema=schema, description=f"{tool.description}\n{note}".strip())
