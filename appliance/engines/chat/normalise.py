"""Our messages into what one template accepts, as the measured table of templates demands.

Text parts are joined, content is "" and never None, arguments are objects, tool results are
messages of their own and stand before the text of the same turn, leading system messages become
one. What a template cannot say in its own words is said in text: the system prompt in the first
user turn, calls in the call syntax, results as user text. Which of these is needed comes from the
template's traits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from appliance.engines.chat.formats.base import CallFormat
from appliance.engines.chat.marks import StandIns
from appliance.engines.chat.traits import Traits, json_text
from appliance.types import (
    Block,
    ImageBlock,
    Json,
    Message,
    Role,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolResultBlock,
)

_ALPHANUMERIC = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def short_call_id(call_id: str) -> str:
    """Nine alphanumeric characters for our id, the same every time. One way: what a model repeats
    of it is never read back, our parser gives new calls ids of our own."""
    number = int.from_bytes(hashlib.sha256(call_id.encode()).digest()[:8], "big")
    return "".join(_ALPHANUMERIC[number // 62**place % 62] for place in range(9))


def normalise(
    messages: Sequence[Message],
    *,
    traits: Traits,
    form: CallFormat,
    tools_text: str,
    stand_ins: StandIns,
) -> list[dict[str, Json]]:
    """Messages for the template, every text of theirs hidden behind a stand-in. `tools_text`, which
    is ours and already hides what is not, joins the system prompt."""
    leading, turns = _split_system(messages)
    writer = _Writer(traits, form, stand_ins)
    system = "\n\n".join(part for part in (writer.hidden(leading), tools_text) if part)
    for message in turns:
        writer.write(message)
    found = writer.messages
    if system and traits.system:
        found.insert(0, {"role": "system", "content": system})
    elif system:
        _prepend_user(found, system)
    return _merge_turns(found) if traits.needs_alternation else found


class _Writer:
    def __init__(self, traits: Traits, form: CallFormat, stand_ins: StandIns) -> None:
        self._traits = traits
        self._form = form
        self._stand_ins = stand_ins
        self._names: dict[str, str] = {}
        self.messages: list[dict[str, Json]] = []

    def write(self, message: Message) -> None:
        if message.role is Role.ASSISTANT:
            self._write_answer(message)
            return
        for block in message.blocks:
            if isinstance(block, ToolResultBlock):
                self._write_result(block)
        text = self.hidden(_joined(message.blocks))
        if message.role is Role.SYSTEM and not self._late_system_fits:
            self._add("user", text)
        elif text or not any(isinstance(block, ToolResultBlock) for block in message.blocks):
            self._add(message.role.value, text)

    def hidden(self, text: str, *, may_vanish: bool = False) -> str:
        """A stand-in for a whole text, cut as the template would cut it."""
        text = text.strip() if self._traits.trims else text
        return self._stand_ins.hide(text, may_vanish=may_vanish)

    @property
    def _late_system_fits(self) -> bool:
        return self._traits.late_system and not self._traits.needs_alternation

    def _write_answer(self, message: Message) -> None:
        calls = message.tool_calls
        for call in calls:
            self._names[call.call_id] = call.name
        # Of an answer with calls gpt-oss may print only the calls.
        text = self.hidden(_joined(message.blocks), may_vanish=bool(calls))
        thought = "\n".join(
            block.text for block in message.blocks if isinstance(block, ThinkingBlock)
        )
        if not calls:
            self._add_answer(text, thought, ())
        elif not self._form.renders_calls:
            written = self._written(calls)
            self._add_answer(f"{text}\n{written}" if text else written, thought, ())
        elif self._traits.several_calls:
            self._add_answer(text, thought, calls)
        else:
            for index, call in enumerate(calls):
                first = index == 0
                self._add_answer(text if first else "", thought if first else "", (call,))

    def _add_answer(self, text: str, thought: str, calls: Sequence[ToolCallBlock]) -> None:
        answer: dict[str, Json] = {"role": "assistant", "content": text}
        key = self._traits.history_thoughts
        if thought and key is not None:
            if calls and key == "thinking" and text:
                # gpt-oss refuses an answer with both beside a call.
                answer["content"] = ""
                answer[key] = f"{self.hidden(thought, may_vanish=True)}\n{text}"
            else:
                answer[key] = self.hidden(thought, may_vanish=True)
        if calls:
            answer["tool_calls"] = [
                {
                    "id": self._call_id(call.call_id),
                    "type": "function",
                    "function": {"name": call.name, "arguments": self._arguments(call)},
                }
                for call in calls
            ]
        self.messages.append(answer)

    def _write_result(self, block: ToolResultBlock) -> None:
        text = self.hidden(
            f"Error: {_joined(block.content)}" if block.is_error else _joined(block.content)
        )
        known = block.call_id in self._names
        if self._form.renders_results and (known or not self._traits.tool_turn_follows_call):
            self.messages.append(
                {
                    "role": "tool",
                    "name": self._names.get(block.call_id, "tool"),
                    "tool_call_id": self._call_id(block.call_id),
                    "content": text,
                }
            )
            return
        self._add("user", f"<tool_response>\n{text}\n</tool_response>")

    def _add(self, role: str, text: str) -> None:
        self.messages.append({"role": role, "content": text})

    def _call_id(self, call_id: str) -> str:
        return short_call_id(call_id) if self._traits.short_call_ids else call_id

    def _arguments(self, call: ToolCallBlock) -> Json:
        return hide_strings(call.arguments, self._stand_ins)

    def _written(self, calls: Sequence[ToolCallBlock]) -> str:
        """Calls in the format's own notation, for templates that have none."""
        syntax = self._form.syntax
        bodies = [f"{call.name}{syntax.middle}{json_text(self._arguments(call))}" for call in calls]
        between = syntax.between or f"{syntax.last}\n{syntax.first}"
        return syntax.first + between.join(bodies) + syntax.last


def hide_strings(value: Json, stand_ins: StandIns) -> Json:
    """The value with every string and key that could hold a control token behind a stand-in."""
    if isinstance(value, str):
        return stand_ins.hide_unplain(value)
    if isinstance(value, Mapping):
        return {
            stand_ins.hide_unplain(key): hide_strings(item, stand_ins)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [hide_strings(item, stand_ins) for item in value]
    return value


def _split_system(messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    count = 0
    while count < len(messages) and messages[count].role is Role.SYSTEM:
        count += 1
    leading = [_joined(message.blocks) for message in messages[:count]]
    return "\n\n".join(text for text in leading if text), messages[count:]


def _joined(blocks: Iterable[Block | TextBlock | ImageBlock]) -> str:
    texts = [block.text for block in blocks if isinstance(block, TextBlock)]
    return "\n".join(texts) if len(texts) > 1 else "".join(texts)


def _prepend_user(messages: list[dict[str, Json]], text: str) -> None:
    if messages and messages[0]["role"] == "user":
        messages[0]["content"] = f"{text}\n\n{messages[0]['content']}"
    else:
        messages.insert(0, {"role": "user", "content": text})


def _merge_turns(messages: list[dict[str, Json]]) -> list[dict[str, Json]]:
    """Neighbouring texts of one role become one turn; calls and results stand for themselves."""
    merged: list[dict[str, Json]] = []
    for message in messages:
        last = merged[-1] if merged else None
        if (
            last is not None
            and last["role"] == message["role"]
            and message["role"] in ("user", "assistant")
            and not last.get("tool_calls")
            and not message.get("tool_calls")
        ):
            parts = [part for part in (last["content"], message["content"]) if part]
            last["content"] = "\n\n".join(parts)
        else:
            if message["role"] == "user" and last is not None and last["role"] == "tool":
                # Results count as nobody's turn: between two of the user an answer must stand.
                merged.append({"role": "assistant", "content": ""})
            merged.append(message)
    return merged
