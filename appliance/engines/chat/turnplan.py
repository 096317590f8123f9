"""One request, planned: the prompt in segments, what constrains the answer, and what reads it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

from appliance.engines.chat.formats.base import CallFormat
from appliance.engines.chat.formats.describe import tool_json
from appliance.engines.chat.formats.recognise import recognise
from appliance.engines.chat.marks import Segment, StandIns
from appliance.engines.chat.normalise import hide_strings, normalise
from appliance.engines.chat.parser import OutputParser
from appliance.engines.chat.rawbody import without_body
from appliance.engines.chat.reshape import as_arguments
from appliance.engines.chat.spec import CallMode, ConstraintSpec
from appliance.engines.chat.syntax import Framing
from appliance.engines.chat.template import ChatTemplate
from appliance.errors import BadRequest
from appliance.types import GenerateRequest, Message, ToolChoiceKind, ToolSpec


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """What the worker needs for one answer.

    `adds_bos`: the tokeniser must add the vocabulary's BOS, because the template wrote none.
    `stop` ends an answer and is never shown: the template's end of turn and the caller's stop
    strings.
    """

    segments: tuple[Segment, ...]
    adds_bos: bool
    constraint: ConstraintSpec | None
    stop: tuple[str, ...]
    parser: OutputParser
    format_name: str

    @property
    def prompt(self) -> str:
        return "".join(segment.text for segment in self.segments)


def plan(template: ChatTemplate, request: GenerateRequest, *, today: date) -> ChatPlan:
    """Raises `BadRequest` for a choice of a tool that is not there, or a template that refuses."""
    form = recognise(template)
    tools = tuple(
        replace(tool, input_schema=as_arguments(tool.input_schema)) for tool in _offered(request)
    )
    segments, prompt = render_prompt(
        template, form, request.messages, request.tools, today=today, thinking=request.thinking
    )
    framing = _framing_after(form.framing, prompt)
    mode = _mode(request)
    constraint = None
    if mode is not CallMode.NONE or request.response_schema is not None:
        constraint = ConstraintSpec(
            syntax=form.syntax if mode is not CallMode.NONE else None,
            framing=framing,
            tools=tools if mode is not CallMode.NONE else (),
            mode=mode,
            parallel=request.tool_choice.parallel,
            response_schema=request.response_schema,
            thinking=request.thinking,
        )
    parser = OutputParser(
        framing,
        form.syntax if mode is not CallMode.NONE else None,
        tools,
        call_id_prefix="call_" + re.sub(r"[^a-zA-Z0-9_-]", "_", request.request_id),
        answer_schema=None if mode is CallMode.REQUIRED else request.response_schema,
    )
    end = template.traits.end_of_turn
    stop = tuple(dict.fromkeys(text for text in (*request.sampling.stop, end) if text))
    return ChatPlan(
        segments=segments,
        adds_bos=not template.traits.bos_in_text,
        constraint=constraint,
        stop=stop,
        parser=parser,
        format_name=form.name,
    )


def render_prompt(
    template: ChatTemplate,
    form: CallFormat,
    messages: Sequence[Message],
    tools: Sequence[ToolSpec],
    *,
    today: date,
    thinking: bool,
) -> tuple[tuple[Segment, ...], str]:
    """The prompt as segments and as the text the template made of stand-ins' originals."""
    stand_ins = StandIns()
    shown = [without_body(tool, form.syntax) for tool in tools]
    listed = [hide_strings(tool_json(tool), stand_ins) for tool in shown]
    described = form.describes_tools
    normal = normalise(
        messages,
        traits=template.traits,
        form=form,
        tools_text=form.describe(listed) if tools and not described else "",
        stand_ins=stand_ins,
    )
    rendered = template.render(
        normal, today=today, tools=listed if described else (), thinking=thinking
    )
    segments = stand_ins.segments(rendered)
    text = "".join(segment.text for segment in segments)
    missing = [tool.name for tool in tools if tool.name not in text]
    if missing:
        raise BadRequest(f"the chat template dropped the tools {', '.join(missing)}")
    return segments, text


def _offered(request: GenerateRequest) -> tuple[ToolSpec, ...]:
    choice = request.tool_choice
    if choice.kind is not ToolChoiceKind.NAMED:
        return request.tools
    named = tuple(tool for tool in request.tools if tool.name == choice.name)
    if not named:
        raise BadRequest(f"tool_choice names {choice.name!r}, which is not among the tools")
    return named


def _mode(request: GenerateRequest) -> CallMode:
    kind = request.tool_choice.kind
    if kind in (ToolChoiceKind.ANY, ToolChoiceKind.NAMED):
        if not request.tools:
            raise BadRequest("tool_choice demands a call, but there are no tools")
        return CallMode.REQUIRED
    if kind is ToolChoiceKind.NONE or not request.tools:
        return CallMode.NONE
    return CallMode.AUTO


def _framing_after(framing: Framing, prompt: str) -> Framing:
    """Whether the generation prompt left the reasoning open (DeepSeek's `<think>`)."""
    think = framing.think
    if think is None:
        return framing
    return replace(framing, starts_thinking=prompt.rfind(think.open) > prompt.rfind(think.close))
