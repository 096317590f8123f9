"""What the chunks of a chat completion mean. No I/O.

An answer is whole only when a choice said its `finish_reason` and the stream said `[DONE]`; one
that merely stops is cut. Servers differ in where they put the reasoning (`reasoning_content`,
`reasoning`), whether usage comes with the last chunk or after it, and in the ids of calls, which
are therefore replaced by ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from appliance.engines.provider.bill import COUNT_MAX, Tally
from appliance.types import (
    Block,
    Delta,
    Label,
    Message,
    Role,
    StopReason,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    TokenLogprob,
    ToolCallBlock,
    ToolCallDelta,
)

CALLS_MAX = 128
"""Of one answer: a server that counts up for ever must not fill our memory."""

_STOPS = {
    "stop": StopReason.END_TURN,
    "length": StopReason.MAX_TOKENS,
    "tool_calls": StopReason.TOOL_USE,
    "function_call": StopReason.TOOL_USE,
    "content_filter": StopReason.REFUSAL,
}


class Malformed(ValueError):
    """A chunk that is none."""


@dataclass(slots=True)
class _Call:
    call_id: str
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class Reader:
    """`names` has tool names as the server knows them → ours."""

    def __init__(self, names: Mapping[str, str], label: Label, new_id: Callable[[], str]) -> None:
        self._names = names
        self._label = label
        self._new_id = new_id
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._calls: dict[int, _Call] = {}
        self._finish: str | None = None
        self.is_done = False
        self.tally: Tally | None = None
        self.logprobs: list[TokenLogprob] = []
        self.stop_sequence: str | None = None
        self.pieces = 0

    @property
    def is_whole(self) -> bool:
        return self._finish is not None and self.is_done

    def read(self, chunk: Any) -> Iterator[Delta]:
        """The deltas of one chunk. Raises `Malformed`."""
        if not isinstance(chunk, Mapping):
            raise Malformed("a chunk is no object")
        if isinstance(usage := chunk.get("usage"), Mapping):
            self.tally = tally_of(usage)
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            raise Malformed("a chunk has no choices")
        for choice in choices[:1]:
            if not isinstance(choice, Mapping):
                raise Malformed("a choice is no object")
            yield from self._choice(choice)

    def message(self) -> tuple[Message, StopReason]:
        """The whole answer. Raises `Malformed` for arguments that are no object."""
        blocks: list[Block] = []
        if self._thinking:
            blocks.append(ThinkingBlock("".join(self._thinking), label=self._label))
        if self._text:
            blocks.append(TextBlock("".join(self._text), self._label))
        stop = _STOPS.get(self._finish or "", StopReason.END_TURN)
        if self._calls and stop is not StopReason.MAX_TOKENS:
            blocks += [self._call(self._calls[index]) for index in sorted(self._calls)]
            stop = StopReason.TOOL_USE
        elif stop is StopReason.TOOL_USE:
            stop = StopReason.END_TURN
        elif self.stop_sequence is not None:
            stop = StopReason.STOP_SEQUENCE
        return Message(Role.ASSISTANT, tuple(blocks)), stop

    def _choice(self, choice: Mapping[str, Any]) -> Iterator[Delta]:
        delta = choice.get("delta") or {}
        if not isinstance(delta, Mapping):
            raise Malformed("a delta is no object")
        if isinstance(thought := delta.get("reasoning_content") or delta.get("reasoning"), str):
            thought = whole_characters(thought)
            self._thinking.append(thought)
            self.pieces += 1
            yield ThinkingDelta(thought)
        if isinstance(text := delta.get("content"), str) and text:
            text = whole_characters(text)
            self._text.append(text)
            self.pieces += 1
            yield TextDelta(text)
        for call in delta.get("tool_calls") or ():
            if isinstance(call, Mapping):
                self.pieces += 1
                yield self._call_delta(call)
        logprobs = choice.get("logprobs")
        if isinstance(logprobs, Mapping):
            self.logprobs += [_logprob(entry) for entry in logprobs.get("content") or ()]
        if isinstance(reason := choice.get("finish_reason"), str):
            self._finish = reason
            stopped_at = choice.get("stop_reason")  # vLLM's: the stop string, or a token's id
            self.stop_sequence = stopped_at if isinstance(stopped_at, str) else None

    def _call_delta(self, piece: Mapping[str, Any]) -> ToolCallDelta:
        index = piece.get("index", 0)
        if not isinstance(index, int) or len(self._calls) >= CALLS_MAX:
            raise Malformed("a tool call has no index, or is one too many")
        if index not in self._calls:
            self._calls[index] = _Call(self._new_id())
        call, function = self._calls[index], piece.get("function") or {}
        if not isinstance(function, Mapping):
            raise Malformed("a tool call's function is no object")
        arguments = function.get("arguments") or ""
        if not isinstance(arguments, str):  # some servers write the object itself
            arguments = json.dumps(arguments)
        arguments = whole_characters(arguments)
        if not call.name and function.get("name"):
            name = str(function["name"])
            call.name = self._names.get(name, name)
        call.arguments.append(arguments)
        return ToolCallDelta(call.call_id, call.name, arguments)

    def _call(self, call: _Call) -> ToolCallBlock:
        try:
            arguments = json.loads("".join(call.arguments) or "{}")
        except ValueError as error:
            raise Malformed(f"the arguments of a call of {call.name} are no JSON") from error
        if not isinstance(arguments, Mapping) or not call.name:
            raise Malformed("a tool call has no name, or arguments that are no object")
        return ToolCallBlock(call.call_id, call.name, _whole_values(dict(arguments)), self._label)


def whole_characters(text: str) -> str:
    """The text without half surrogates, which JSON can hold and UTF-8 cannot."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _whole_values(value: Any) -> Any:
    """As `whole_characters`, for every text in a JSON value: an escape may spell a half."""
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, list):
        return [_whole_values(item) for item in value]
    if isinstance(value, dict):
        return {whole_characters(key): _whole_values(item) for key, item in value.items()}
    return value


def tally_of(usage: Mapping[str, Any]) -> Tally:
    def count(of: Any, name: str) -> int:
        value = of.get(name) if isinstance(of, Mapping) else None
        return value if isinstance(value, int) and 0 <= value <= COUNT_MAX else 0

    prompt = count(usage, "prompt_tokens")
    cached = min(count(usage.get("prompt_tokens_details"), "cached_tokens"), prompt)
    return Tally(prompt - cached, cached, 0, count(usage, "completion_tokens"))


def _logprob(entry: Any) -> TokenLogprob:
    try:
        top = tuple((str(e["token"]), float(e["logprob"])) for e in entry.get("top_logprobs") or ())
        return TokenLogprob(str(entry["token"]), float(entry["logprob"]), top)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Malformed("a log-probability is malformed") from error
