"""How a model family writes calls and reasoning: plain data that prompt, constraint and parser
share.

A turn that calls tools is, in every family we know, the same sentence:

    first NAME middle ARGUMENTS (between NAME middle ARGUMENTS)* last

Hermes: first is `<tool_call>\\n{"name": "`, middle `", "arguments": `, between closes one tag and
opens the next, last closes. Mistral puts a call id between name and arguments, DeepSeek an outer
bracket around all calls, Llama 3 allows no second call, Qwen3-Coder writes the arguments as tags.
So a family is data, found by rendering one call and two calls and cutting the text at the values
put in; and one grammar builder and one parser serve them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ArgumentStyle(StrEnum):
    JSON = "json"
    TAGS = "tags"
    """`<parameter=name>\\nvalue\\n</parameter>\\n` for each argument; strings are raw."""


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """The literal texts of a turn of calls, as in the module's sentence.

    `trigger` is the text that turns free text into a call: a prefix of `first`, so that what
    follows it can be constrained. `after_id` is set where a call id stands between name and
    arguments: then the text between them is `middle ID after_id`. `between` is None where one
    turn holds one call.
    """

    first: str
    middle: str
    last: str
    trigger: str
    between: str | None = None
    after_id: str | None = None
    style: ArgumentStyle = ArgumentStyle.JSON
    only_at_start: bool = False
    """The trigger counts only as the first thing of an answer (calls without any marker)."""
    raw_bodies: bool = True
    """Text may follow a call's `last`, so a large argument can be written there (`rawbody.py`)."""

    @property
    def after_trigger(self) -> str:
        return self.first[len(self.trigger) :]


@dataclass(frozen=True, slots=True)
class ThinkMarks:
    """What surrounds reasoning. `resume` must follow `close` before the answer begins."""

    open: str
    close: str
    resume: str = ""


@dataclass(frozen=True, slots=True)
class Framing:
    """The shape of an answer outside calls.

    `starts_thinking`: the prompt already opened the reasoning. `answer` is written before an
    answer's text (harmony's final channel), `breaks` are marks that separate and are never shown.
    """

    think: ThinkMarks | None = None
    starts_thinking: bool = False
    answer: str = ""
    breaks: tuple[str, ...] = ()
