"""JSON arguments between marks: Qwen and Hermes, Granite, Mistral, DeepSeek.

The marks are whatever the template put round the probe's call, so the format needs no list of
families: Hermes' `<tool_call>` tags, Mistral's `[TOOL_CALLS]name[ARGS]`, DeepSeek's outer and inner
brackets are all values of the same four texts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.engines.chat.formats.describe import describe
from appliance.engines.chat.syntax import CallSyntax, Framing
from appliance.engines.chat.traits import Traits
from appliance.types import Json

_MARK = re.compile(r"\s*(<[^<>\s]+>|\[[A-Z_]+\])")


@dataclass(frozen=True, slots=True)
class Enveloped:
    syntax: CallSyntax
    framing: Framing
    describes_tools: bool
    renders_results: bool
    renders_calls: bool = True
    name: str = "enveloped"

    def describe(self, tools: Sequence[Json]) -> str:
        return describe(tools, self.syntax)


def recognise(source: str, traits: Traits) -> Enveloped | None:
    texts = traits.call_texts
    if texts is None or traits.tagged_arguments:
        return None
    mark = _MARK.match(texts.first)
    if mark is None:
        return None
    return Enveloped(
        syntax=CallSyntax(
            first=texts.first.lstrip(),
            middle=texts.middle,
            after_id=texts.after_id,
            between=texts.between,
            last=texts.last,
            trigger=mark[1],
        ),
        framing=Framing(think=traits.think),
        describes_tools=traits.describes_tools,
        renders_results=traits.renders_results,
    )
