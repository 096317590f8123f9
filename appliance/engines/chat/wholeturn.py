"""A whole answer as one grammar, for servers that take a grammar with the request.

Our own worker holds the automaton of a turn itself (`phases.py`) and compiles one tool at a time. A
server (vLLM's guidance backend is the same library) wants everything at once: free text up to the
trigger, then each tool's name with its own arguments, the end or the next call. Reasoning and
channels that control tokens frame (Qwen's and DeepSeek's thoughts, harmony's messages) come before
it in the order in which models of the family write them.
"""

from __future__ import annotations

import json
import re

from appliance.engines.chat.grammar import GrammarWriter
from appliance.engines.chat.rawbody import closing, opening, raw_argument, without_body
from appliance.engines.chat.rules import json_grammar, tags_rules
from appliance.engines.chat.spec import CallMode, ConstraintSpec
from appliance.engines.chat.syntax import ArgumentStyle, CallSyntax, Framing
from appliance.types import ToolSpec

_ANY = "/(?s:.*)/"


def whole_turn(spec: ConstraintSpec, writer: GrammarWriter) -> str:
    """The grammar in Lark, as llguidance reads it."""
    rules: list[str] = []
    demanded = _demanded(spec, writer, rules)
    if spec.mode is CallMode.AUTO and spec.response_schema is None:
        start = _free(spec, writer, rules)
    else:
        start = _after_reasoning(spec, writer, demanded, rules)
    return "\n".join(('%llguidance {"no_forcing": true}', f"start: {start}", *rules))


def _demanded(spec: ConstraintSpec, writer: GrammarWriter, rules: list[str]) -> str:
    """An answer that must be a call, or valid against a schema."""
    choices = []
    if spec.mode is not CallMode.NONE:
        assert spec.syntax is not None
        _calls(spec.tools, spec.syntax, writer, rules, parallel=spec.parallel)
        choices.append(f"{writer.literal(spec.syntax.first)} calls")
    if spec.response_schema is not None and spec.mode is not CallMode.REQUIRED:
        rules.append(f"answer: %json {json_grammar(spec.response_schema)}")
        choices.append(f"{writer.literal(spec.framing.answer)} answer".strip())
    return "(" + " | ".join(choices) + ")"


def _calls(
    tools: tuple[ToolSpec, ...],
    syntax: CallSyntax,
    writer: GrammarWriter,
    rules: list[str],
    *,
    parallel: bool,
) -> None:
    """`calls`: from the first call's name to the end of the turn."""
    ends = [writer.literal(syntax.last) or '""']
    if parallel and syntax.between is not None:
        ends.append(f"{writer.literal(syntax.between)} calls")
    rules.append(f"tail: {' | '.join(ends)}")
    middle = writer.literal(syntax.middle)
    if syntax.after_id is not None:
        middle = f"{middle} /[a-zA-Z0-9]{{9}}/ {writer.literal(syntax.after_id)}"
    choices = []
    for number, tool in enumerate(tools):
        raw = raw_argument(tool, syntax)
        shown = tool if raw is None else without_body(tool, syntax)
        rules.append(_arguments(number, shown, syntax))
        rest = "tail"
        if raw is not None:
            rest = f"{writer.literal(syntax.last + opening(raw))} body{number}"
            rules.append(f"body{number}[suffix={json.dumps(closing(raw))}]: {_ANY}")
        name = json.dumps(tool.name, ensure_ascii=False)
        choices.append(f"{name} {middle} arguments{number} {rest}")
    rules.append(f"calls: {' | '.join(choices)}")


def _arguments(number: int, tool: ToolSpec, syntax: CallSyntax) -> str:
    if syntax.style is ArgumentStyle.TAGS:
        return tags_rules(tool.input_schema, suffix=f"_{number}", name=f"arguments{number}")
    return f"arguments{number}: %json {json_grammar(tool.input_schema)}"


def _free(spec: ConstraintSpec, writer: GrammarWriter, rules: list[str]) -> str:
    """Reasoning, where the model's marks for it are control tokens, then text, which a trigger may
    turn into a call. `breaks` are not offered: without them a turn says the same."""
    syntax, framing = spec.syntax, spec.framing
    assert syntax is not None
    after = f"{writer.literal(syntax.after_trigger)} calls".strip()
    thoughts = _thoughts(framing, writer, rules)
    if framing.answer:
        # A channel is named before anything is said in it, a call's like the answer's.
        rules.append(f"TEXT: {_ANY}")
        answer, call = writer.literal(framing.answer), writer.literal(syntax.trigger)
        return f"{thoughts} ({answer} TEXT | {call} {after})"
    if writer.controls(syntax.trigger):
        rules.append(f"TEXT: {_ANY}")
        return f"{thoughts} TEXT ({writer.literal(syntax.trigger)} {after})?".strip()
    trigger = re.escape(syntax.trigger).replace("/", "\\/")
    if syntax.only_at_start:
        rules.append(f"TEXT: {_ANY} & ~/[ \\n]*{trigger}(?s:.*)/")
        blanks = "/[ \\n]{0,3}/ " if thoughts else ""
        return f"{thoughts} (TEXT | {blanks}{writer.literal(syntax.trigger)} {after})".strip()
    rules.append(f"TEXT: {_ANY} & ~/(?s:.*){trigger}(?s:.*)/")
    rules.append(f"until[suffix={json.dumps(syntax.trigger, ensure_ascii=False)}]: {_ANY}")
    return f"{thoughts} (TEXT | until {after})".strip()


def _thoughts(framing: Framing, writer: GrammarWriter, rules: list[str]) -> str:
    """What may be thought before anything is said, as the model's control tokens frame it; nothing
    where the marks are plain text, which free text may hold anyway."""
    think = framing.think
    if think is None or not writer.controls(think.close):
        return ""
    rules.append(f"THOUGHT: {_ANY}")
    begun = f"THOUGHT {writer.literal(think.close + think.resume)}".strip()
    again = f"{writer.literal(think.open)} {begun}"
    if framing.starts_thinking:
        return f"({begun})?"
    return f"({again})*" if think.resume else f"({again})?"


def _after_reasoning(
    spec: ConstraintSpec, writer: GrammarWriter, demanded: str, rules: list[str]
) -> str:
    think = spec.framing.think
    if think is None or not (spec.framing.starts_thinking or spec.thinking):
        return demanded
    if writer.controls(think.close):
        rules.append(f"THOUGHT: {_ANY}")
        thought = f"THOUGHT {writer.literal(think.close)}"
    else:
        rules.append(f"thought[suffix={json.dumps(think.close, ensure_ascii=False)}]: {_ANY}")
        thought = "thought"
    resumed = f"{thought} /[ \\n]{{0,3}}/ {writer.literal(think.resume)} {demanded}"
    if spec.framing.starts_thinking:
        return resumed
    return f"{writer.literal(think.open)} {resumed} | {demanded}"
