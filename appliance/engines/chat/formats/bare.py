"""A call that is the whole answer: Llama 3's `{"name": …, "parameters": …}`, no mark around it.

Only the answer's first characters tell a call from text, so the trigger counts at the start alone.
The models like to put `<|python_tag|>` before it; it is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.engines.chat.formats.describe import describe
from appliance.engines.chat.syntax import CallSyntax, Framing
from appliance.engines.chat.traits import Traits
from appliance.types import Json


@dataclass(frozen=True, slots=True)
class Bare:
    syntax: CallSyntax
    framing: Framing
    describes_tools: bool
    renders_results: bool
    renders_calls: bool = True
    name: str = "bare"

    def describe(self, tools: Sequence[Json]) -> str:
        return describe(tools, self.syntax)


def recognise(source: str, traits: Traits) -> Bare | None:
    texts = traits.call_texts
    if texts is None or traits.tagged_arguments or not texts.first.lstrip().startswith("{"):
        return None
    first = texts.first.lstrip()
    return Bare(
        syntax=CallSyntax(
            first=first,
            middle=texts.middle,
            after_id=texts.after_id,
            between=None,
            last=texts.last,
            trigger=first[:2],
            only_at_start=True,
        ),
        framing=Framing(think=traits.think, breaks=("<|python_tag|>",)),
        describes_tools=traits.describes_tools,
        renders_results=traits.renders_results,
    )
