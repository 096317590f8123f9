"""Generated text back into thinking, text and calls, as it arrives and however it is cut up.

The parser is a small state machine over one buffer. It only ever decides when the text it has
cannot be read another way by what follows (a possible beginning of a mark is held back), so the
result does not depend on where the stream was cut; a property test holds it to that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from enum import Enum, auto

from appliance.engines.chat.arguments import ArgumentReader, argument_reader
from appliance.engines.chat.rawbody import raw_argument
from appliance.engines.chat.scan import find_first, held_back, loose
from appliance.engines.chat.schema import fitted
from appliance.engines.chat.syntax import CallSyntax, Framing
from appliance.engines.chat.verify import check_answer, check_call
from appliance.errors import EngineError
from appliance.types import (
    Block,
    Delta,
    Json,
    Message,
    Role,
    StopReason,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolCallBlock,
    ToolCallDelta,
    ToolSpec,
)

HEADER_LIMIT = 512
"""Characters between a trigger and a call's arguments; beyond it the trigger was mere text."""


class _State(Enum):
    START = auto()
    THINK = auto()
    TEXT = auto()
    HEADER = auto()
    ARGUMENTS = auto()
    TAIL = auto()


class OutputParser:
    """One answer's reader: `feed` pieces of text (control tokens printed), then `finish` once.

    With `syntax` None nothing is read as a call. `answer_schema` is checked at the end.
    """

    def __init__(
        self,
        framing: Framing,
        syntax: CallSyntax | None,
        tools: Sequence[ToolSpec],
        *,
        call_id_prefix: str,
        answer_schema: Mapping[str, Json] | None = None,
    ) -> None:
        self._framing = framing
        self._syntax = syntax
        self._tools = {tool.name: tool for tool in tools}
        self._call_id_prefix = call_id_prefix
        self._answer_schema = answer_schema
        self._state = _State.THINK if framing.starts_thinking else _State.START
        self._buffer = ""
        self._spaces = ""
        self._blocks: list[Block] = []
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls = 0
        self._name = ""
        self._call_id = ""
        self._reader: ArgumentReader | None = None
        self._is_shown = True
        self._is_last = False
        self._pieces: list[str] = []
        self._header = _header_pattern(syntax.after_trigger, syntax) if syntax else None
        self._next = _header_pattern(syntax.between, syntax) if syntax and syntax.between else None
        self._last = re.compile(loose(syntax.last)) if syntax else None
        self._text_marks = framing.breaks
        if syntax is not None and not syntax.only_at_start:
            self._text_marks = (*framing.breaks, syntax.trigger)

    @property
    def in_text(self) -> bool:
        """The next characters are plain answer: only there may a caller's stop string count."""
        return self._state in (_State.START, _State.TEXT)

    def feed(self, text: str) -> list[Delta]:
        self._buffer += text
        deltas: list[Delta] = []
        while self._advance(deltas, is_last=False):
            pass
        return deltas

    def finish(self, reason: StopReason) -> tuple[list[Delta], Message, StopReason]:
        """The last deltas, the whole message, and why it ended. A call that was cut is not in the
        message. Raises `EngineError` if a finished call or answer breaks its schema."""
        deltas: list[Delta] = []
        while self._advance(deltas, is_last=True):
            pass
        cut = self._state in (_State.HEADER, _State.ARGUMENTS)
        if self._state is _State.TAIL:
            self._close_call(deltas)
        if not self._calls:
            self._show(deltas, "", flush=True)
        self._close_text()
        if (
            self._answer_schema is not None
            and not self._calls
            and reason is not StopReason.MAX_TOKENS
        ):
            check_answer(
                "".join(b.text for b in self._blocks if isinstance(b, TextBlock)),
                self._answer_schema,
            )
        if self._calls and not cut and reason is not StopReason.REFUSAL:
            reason = StopReason.TOOL_USE
        return deltas, Message(Role.ASSISTANT, tuple(self._blocks)), reason

    def _advance(self, deltas: list[Delta], *, is_last: bool) -> bool:
        match self._state:
            case _State.START:
                return self._start(is_last)
            case _State.THINK:
                return self._think(deltas, is_last)
            case _State.TEXT:
                return self._text(deltas, is_last)
            case _State.HEADER:
                return self._read_header(deltas, is_last)
            case _State.ARGUMENTS:
                return self._read_arguments(deltas)
            case _State.TAIL:
                return self._read_tail(deltas, is_last)

    def _start(self, is_last: bool) -> bool:
        """The first thing of an answer: reasoning, a bare call, or text."""
        body = self._buffer.lstrip()
        for mark in self._framing.breaks:
            if body.startswith(mark):
                self._buffer = body[len(mark) :]
                return True
        think = self._framing.think
        if think is not None and body.startswith(think.open):
            self._buffer = body[len(think.open) :]
            self._state = _State.THINK
            return True
        syntax = self._syntax
        if syntax is not None and body.startswith(syntax.trigger):
            self._buffer = body[len(syntax.trigger) :]
            self._state = _State.HEADER
            return True
        marks = [*self._framing.breaks]
        if think is not None:
            marks.append(think.open)
        if syntax is not None:
            marks.append(syntax.trigger)
        if not is_last and any(mark.startswith(body) for mark in marks):
            return False
        self._state = _State.TEXT
        return True

    def _think(self, deltas: list[Delta], is_last: bool) -> bool:
        think = self._framing.think
        assert think is not None
        at = self._buffer.find(think.close)
        if at < 0:
            keep = 0 if is_last else held_back(self._buffer, (think.close,))
            self._add_thought(deltas, self._take(len(self._buffer) - keep))
            return False
        self._add_thought(deltas, self._take(at))
        self._buffer = self._buffer[len(think.close) :]
        self._close_thought()
        self._state = _State.START
        return True

    def _text(self, deltas: list[Delta], is_last: bool) -> bool:
        syntax = self._syntax
        found = find_first(self._buffer, self._text_marks)
        if found is None:
            keep = 0 if is_last else held_back(self._buffer, self._text_marks)
            self._show(deltas, self._take(len(self._buffer) - keep))
            return False
        at, mark = found
        self._show(deltas, self._take(at))
        self._buffer = self._buffer[len(mark) :]
        if syntax is not None and mark == syntax.trigger:
            self._state = _State.HEADER
        elif self._framing.think is not None and self._framing.think.resume == mark:
            self._state = _State.START
        return True

    def _read_header(self, deltas: list[Delta], is_last: bool) -> bool:
        assert self._syntax is not None
        assert self._header is not None
        match = self._header.match(self._buffer)
        if match is None:
            if is_last or len(self._buffer) < HEADER_LIMIT:
                return False
            self._show(deltas, self._syntax.trigger)
            self._state = _State.TEXT
            return True
        self._open_call(deltas, match)
        return True

    def _open_call(self, deltas: list[Delta], match: re.Match[str]) -> None:
        """Where the grammar cannot promise a valid call, its arguments are not shown before its
        end, when they have been checked."""
        assert self._syntax is not None
        self._close_text()
        self._buffer = self._buffer[match.end() :]
        self._name = match["name"]
        self._call_id = f"{self._call_id_prefix}_{self._calls}"
        tool = self._tools.get(self._name)
        if tool is None:
            raise EngineError(f"the model called the unknown tool {self._name!r}")
        self._is_last = raw_argument(tool, self._syntax) is not None
        self._reader = argument_reader(tool, self._syntax)
        self._pieces = []
        self._is_shown = fitted(tool.input_schema).is_exact
        self._state = _State.ARGUMENTS
        if self._is_shown:
            deltas.append(ToolCallDelta(self._call_id, self._name, ""))

    def _read_arguments(self, deltas: list[Delta]) -> bool:
        assert self._reader is not None
        piece, self._buffer = self._reader.feed(self._buffer)
        if piece:
            self._pieces.append(piece)
            if self._is_shown:
                deltas.append(ToolCallDelta(self._call_id, self._name, piece))
        if not self._reader.is_done:
            return False
        if self._is_last:
            self._close_call(deltas)
            self._state = _State.TEXT
        else:
            self._state = _State.TAIL
        return True

    def _read_tail(self, deltas: list[Delta], is_last: bool) -> bool:
        """What follows the arguments: the end of the calls, or the next one."""
        assert self._last is not None
        match = self._last.match(self._buffer)
        if match is not None:
            self._buffer = self._buffer[match.end() :]
            self._close_call(deltas)
            self._state = _State.TEXT
            return True
        if self._next is not None and (match := self._next.match(self._buffer)) is not None:
            self._close_call(deltas)
            self._open_call(deltas, match)
            return True
        if is_last or len(self._buffer) < HEADER_LIMIT:
            return False
        self._close_call(deltas)
        self._state = _State.TEXT
        return True

    def _close_call(self, deltas: list[Delta]) -> None:
        arguments = check_call(self._tools[self._name], "".join(self._pieces))
        if not self._is_shown:
            text = json.dumps(arguments, ensure_ascii=False)
            deltas.append(ToolCallDelta(self._call_id, self._name, text))
        self._blocks.append(ToolCallBlock(self._call_id, self._name, arguments))
        self._calls += 1
        self._spaces = ""

    def _take(self, count: int) -> str:
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _show(self, deltas: list[Delta], text: str, *, flush: bool = False) -> None:
        """Text of the answer. White space waits for what follows it: before a call it is dropped,
        and so it is where an answer begins."""
        text = self._spaces + text
        kept = text if flush else text.rstrip()
        self._spaces = text[len(kept) :]
        if kept and not self._texts:
            kept = kept.lstrip()
        if kept:
            self._texts.append(kept)
            deltas.append(TextDelta(kept))

    def _close_text(self) -> None:
        self._close_thought()
        if self._texts:
            self._blocks.append(TextBlock("".join(self._texts)))
        self._texts = []
        self._spaces = ""

    def _add_thought(self, deltas: list[Delta], text: str) -> None:
        if text:
            self._thoughts.append(text)
            deltas.append(ThinkingDelta(text))

    def _close_thought(self) -> None:
        thought = "".join(self._thoughts).strip()
        if thought:
            self._blocks.append(ThinkingBlock(thought))
        self._thoughts = []


def _header_pattern(before: str, syntax: CallSyntax) -> re.Pattern[str]:
    pattern = loose(before) + r"(?P<name>[^\s\"<>\[\]{}|｜]+)" + loose(syntax.middle.rstrip())
    if syntax.after_id is not None:
        pattern += "[a-zA-Z0-9]*" + loose(syntax.after_id.rstrip())
    return re.compile(pattern)
