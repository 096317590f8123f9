"""gpt-oss: every message names its channel. Reasoning goes to `analysis`, the answer to `final`,
a call to `commentary` with a recipient; the prompt ends after `<|start|>assistant`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.engines.chat.formats.describe import describe
from appliance.engines.chat.syntax import CallSyntax, Framing, ThinkMarks
from appliance.engines.chat.traits import Traits
from appliance.types import Json

_FIRST = "<|channel|>commentary to=functions."
_SYNTAX = CallSyntax(
    first=_FIRST,
    middle=" <|constrain|>json<|message|>",
    last="<|call|>",
    trigger=_FIRST,
    raw_bodies=False,
)
_FRAMING = Framing(
    think=ThinkMarks("<|channel|>analysis<|message|>", "<|end|>", resume="<|start|>assistant"),
    answer="<|channel|>final<|message|>",
    breaks=(
        "<|start|>assistant",
        "<|channel|>final<|message|>",
        "<|channel|>commentary<|message|>",
        "<|end|>",
        "<|return|>",
    ),
)


@dataclass(frozen=True, slots=True)
class Harmony:
    syntax: CallSyntax = _SYNTAX
    framing: Framing = _FRAMING
    describes_tools: bool = True
    renders_results: bool = True
    renders_calls: bool = True
    name: str = "harmony"

    def describe(self, tools: Sequence[Json]) -> str:
        return describe(tools, self.syntax)


def recognise(source: str, traits: Traits) -> Harmony | None:
    if "<|channel|>" not in source or "<|message|>" not in source:
        return None
    return Harmony(
        describes_tools=traits.describes_tools,
        renders_results=traits.renders_results,
        renders_calls=traits.renders_calls,
    )
