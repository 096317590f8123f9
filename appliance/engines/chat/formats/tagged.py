"""Arguments as tags: Qwen3-Coder's `<function=name><parameter=key>value</parameter></function>`.

Strings are written raw between their tags, so files need no escaping; every other value is JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.engines.chat.formats.describe import describe
from appliance.engines.chat.syntax import ArgumentStyle, CallSyntax, Framing
from appliance.engines.chat.traits import Traits
from appliance.types import Json


@dataclass(frozen=True, slots=True)
class Tagged:
    syntax: CallSyntax
    framing: Framing
    describes_tools: bool
    renders_results: bool
    renders_calls: bool = True
    name: str = "tagged"

    def describe(self, tools: Sequence[Json]) -> str:
        return describe(tools, self.syntax)


def recognise(source: str, traits: Traits) -> Tagged | None:
    texts = traits.call_texts
    if texts is None or not traits.tagged_arguments:
        return None
    first = texts.first.lstrip()
    trigger = first.split("\n", 1)[0]
    return Tagged(
        syntax=CallSyntax(
            first=first,
            middle=texts.middle,
            between=texts.between,
            last=texts.last,
            trigger=trigger,
            style=ArgumentStyle.TAGS,
            raw_bodies=False,
        ),
        framing=Framing(think=traits.think),
        describes_tools=traits.describes_tools,
        renders_results=traits.renders_results,
    )
