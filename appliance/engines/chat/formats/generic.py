"""For templates that know nothing of tools: our own description in the system prompt, calls in the
Hermes notation (the most common in training data, and what SmolLM's own prompts teach)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.engines.chat.formats.describe import describe
from appliance.engines.chat.syntax import CallSyntax, Framing
from appliance.engines.chat.traits import Traits
from appliance.types import Json

_SYNTAX = CallSyntax(
    first='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    between='}\n</tool_call>\n<tool_call>\n{"name": "',
    last="}\n</tool_call>",
    trigger="<tool_call>",
)


@dataclass(frozen=True, slots=True)
class Generic:
    framing: Framing
    syntax: CallSyntax = _SYNTAX
    describes_tools: bool = False
    renders_results: bool = False
    renders_calls: bool = False
    name: str = "generic"

    def describe(self, tools: Sequence[Json]) -> str:
        return describe(tools, self.syntax)


def recognise(source: str, traits: Traits) -> Generic:
    return Generic(framing=Framing(think=traits.think))
