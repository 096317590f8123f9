"""Reads a Messages stream event by event: deltas out, and at the end an answer, or not.

Sans-I/O, because this is where the worst mistake of a cloud client hides: a stream that simply
ends looks like an answer that ended. The SDK reports both alike. Here an answer exists only when
`message_stop` was read after a `stop_reason`, every block was closed, and every call's arguments
are whole JSON. Anything else is a `Malformed` or an unfinished reader, and its caller's failure.

Unknown events and delta kinds are skipped, as the protocol demands; known ones out of order or out
of shape are not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from appliance.engines.provider.bill import Tally, tallied
from appliance.types import (
    Block,
    Delta,
    Json,
    Label,
    Message,
    Role,
    StopReason,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolCallBlock,
    ToolCallDelta,
)
from appliance.wire.anthropic import PROVIDER, REDACTED

ANSWER_MAX_CHARS = 16 << 20
"""Of one answer, arguments included: far above any window, and a bound on a mad server."""

_STOPS = {
    "end_turn": StopReason.END_TURN,
    "max_tokens": StopReason.MAX_TOKENS,
    "stop_sequence": StopReason.STOP_SEQUENCE,
    "tool_use": StopReason.TOOL_USE,
    "refusal": StopReason.REFUSAL,
    "pause_turn": StopReason.END_TURN,
    "model_context_window_exceeded": StopReason.MAX_TOKENS,
}


class Malformed(ValueError):
    """The stream said something that no well-formed stream says."""


class StreamError(Exception):
    """The stream carried an `error` event; `error` is its body's error object."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(str(error.get("message", "")))
        self.error = error


@dataclass(slots=True)
class _Open:
    """A content block that is being written."""

    kind: str
    text: list[str] = field(default_factory=list)
    signature: str = ""
    call_id: str = ""
    name: str = ""
    given: Mapping[str, Json] = field(default_factory=dict)


class Reader:
    """One answer. Feed it every event's JSON in order with `take`; ask `is_complete` at the end.

    `tool_names` leads from the API's names to ours; `make_call_id` draws an id of ours for each
    call, since the provider's stay outside. All that is read gets `label`.
    """

    def __init__(
        self, tool_names: Mapping[str, str], label: Label, make_call_id: Callable[[], str]
    ) -> None:
        self._names = tool_names
        self._label = label
        self._make_call_id = make_call_id
        self._blocks: dict[int, Block | None] = {}
        self._broken_calls = 0
        self._open: dict[int, _Open] = {}
        self._stop: StopReason | None = None
        self._is_started = False
        self._chars = 0
        self.stop_sequence: str | None = None
        self.is_complete = False
        self.tally = Tally()

    @property
    def has_begun(self) -> bool:
        """The provider has taken the request, and bills it."""
        return self._is_started

    @property
    def has_stopped(self) -> bool:
        """The provider has said why it stopped, and with it the final count."""
        return self._stop is not None

    @property
    def chars(self) -> int:
        """Characters of output read so far, thinking and arguments included."""
        return self._chars

    def take(self, event: Any) -> Delta | None:
        """The delta in this event, if it holds one. Raises `Malformed`, `StreamError`."""
        if not isinstance(event, Mapping):
            raise Malformed("an event is no JSON object")
        kind = event.get("type")
        if kind == "error":
            error = event.get("error")
            raise StreamError(error if isinstance(error, Mapping) else {})
        if self.is_complete:
            raise Malformed(f"{kind} after message_stop")
        if kind != "message_start" and not self._is_started and kind in _IN_ORDER:
            raise Malformed(f"{kind} before message_start")
        try:
            return self._taken(str(kind), event)
        except (KeyError, TypeError, AttributeError) as error:
            raise Malformed(f"{kind} lacks {error}") from error

    def message(self) -> tuple[Message, StopReason]:
        """The answer. Call it only when `is_complete`."""
        assert self.is_complete and self._stop is not None
        blocks = (block for _, block in sorted(self._blocks.items()) if block is not None)
        return Message(Role.ASSISTANT, tuple(blocks)), self._stop

    # --- events ---------------------------------------------------------------------------------

    def _taken(self, kind: str, event: Mapping[str, Any]) -> Delta | None:
        match kind:
            case "message_start":
                if self._is_started:
                    raise Malformed("a second message_start")
                self._is_started = True
                self.tally = tallied(self.tally, event["message"].get("usage") or {})
            case "content_block_start":
                return self._begin(event["index"], event["content_block"])
            case "content_block_delta":
                return self._add(event["index"], event["delta"])
            case "content_block_stop":
                self._end(event["index"])
            case "message_delta":
                self._finish(event["delta"], event.get("usage") or {})
            case "message_stop":
                self._stopped()
        return None

    def _begin(self, index: int, block: Mapping[str, Any]) -> Delta | None:
        if not isinstance(index, int) or index in self._open or index in self._blocks:
            raise Malformed(f"content block {index} starts twice")
        opened = self._open[index] = _Open(str(block["type"]))
        match opened.kind:
            case "text":
                return self._said(opened, str(block.get("text") or ""), TextDelta)
            case "thinking":
                opened.signature = str(block.get("signature") or "")
                return self._said(opened, str(block.get("thinking") or ""), ThinkingDelta)
            case "redacted_thinking":
                opened.signature = str(block["data"])
            case "tool_use":
                sent = str(block["name"])
                opened.name = self._names.get(sent, sent)
                opened.call_id = self._make_call_id()
                given = block.get("input") or {}
                opened.given = given if isinstance(given, Mapping) else {}
                return ToolCallDelta(opened.call_id, opened.name, "")
        return None

    def _add(self, index: int, delta: Mapping[str, Any]) -> Delta | None:
        opened = self._open.get(index)
        if opened is None:
            raise Malformed(f"a delta for content block {index}, which is not open")
        match delta["type"]:
            case "text_delta":
                return self._said(opened, delta["text"], TextDelta)
            case "thinking_delta":
                return self._said(opened, delta["thinking"], ThinkingDelta)
            case "signature_delta":
                opened.signature += delta["signature"]
            case "input_json_delta":
                piece = delta["partial_json"]
                self._keep(opened, piece)
                return ToolCallDelta(opened.call_id, opened.name, piece) if piece else None
        return None

    def _said(
        self, opened: _Open, piece: Any, kind: type[TextDelta] | type[ThinkingDelta]
    ) -> Delta | None:
        self._keep(opened, piece)
        return kind(piece) if piece else None

    def _keep(self, opened: _Open, piece: Any) -> None:
        if not isinstance(piece, str):
            raise Malformed("a delta that is no text")
        self._chars += len(piece)
        if self._chars > ANSWER_MAX_CHARS:
            raise Malformed(f"an answer longer than {ANSWER_MAX_CHARS} characters")
        opened.text.append(piece)

    def _end(self, index: int) -> None:
        opened = self._open.pop(index, None)
        if opened is None:
            raise Malformed(f"content block {index} ends and is not open")
        self._blocks[index] = self._closed(opened)

    def _finish(self, delta: Mapping[str, Any], usage: Mapping[str, Any]) -> None:
        self.tally = tallied(self.tally, usage)
        reason = delta.get("stop_reason")
        if reason is None:
            return
        if reason not in _STOPS:
            raise Malformed(f"stop_reason {reason!r} is not known")
        self._stop = _STOPS[reason]
        self.stop_sequence = delta.get("stop_sequence")

    def _stopped(self) -> None:
        if self._stop is None:
            raise Malformed("message_stop without a stop_reason")
        if self._open:
            raise Malformed("message_stop with a block still open")
        if self._broken_calls and self._stop is not StopReason.MAX_TOKENS:
            raise Malformed("the arguments of a call are not JSON")
        has_calls = any(isinstance(block, ToolCallBlock) for block in self._blocks.values())
        if self._stop is StopReason.TOOL_USE and not has_calls:
            raise Malformed("it stopped for a tool call and made none")
        self.is_complete = True

    def _closed(self, opened: _Open) -> Block | None:
        """The finished block; None for what is skipped, and for a call that was cut by
        `max_tokens` in the middle of its arguments: half a call is never carried out."""
        text = "".join(opened.text)
        match opened.kind:
            case "text":
                return TextBlock(text, self._label) if text else None
            case "thinking":
                return ThinkingBlock(text, opened.signature or None, PROVIDER, self._label)
            case "redacted_thinking":
                return ThinkingBlock("", opened.signature, REDACTED, self._label)
            case "tool_use":
                arguments = _arguments(text, opened.given)
                if arguments is None:
                    self._broken_calls += 1
                    return None
                return ToolCallBlock(opened.call_id, opened.name, arguments, self._label)
        return None


_IN_ORDER = frozenset(
    {"content_block_start", "content_block_delta", "content_block_stop"}
    | {"message_delta", "message_stop"}
)


def _arguments(text: str, given: Mapping[str, Json]) -> Mapping[str, Json] | None:
    if not text:
        return dict(given)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
