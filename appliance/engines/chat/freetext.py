"""Where free text turns into a call: the same reading as the parser's, over bytes, without a memory
of what was said. Bytes are handled as Latin-1 text so that a token may end within a character."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from appliance.engines.chat.scan import find_first, held_back
from appliance.engines.chat.syntax import CallSyntax, Framing


class Place(Enum):
    START = auto()
    THINK = auto()
    TEXT = auto()


@dataclass(frozen=True, slots=True)
class FreeText:
    """Where we are, and the end of the text that may begin a mark."""

    place: Place
    tail: str = ""


@dataclass(frozen=True, slots=True)
class Called:
    """The trigger stands; `rest` are the bytes behind it that came with the same token."""

    rest: bytes


def latin(text: str) -> str:
    return text.encode().decode("latin-1")


class FreeReader:
    """Steps a `FreeText` through pieces; holds only the marks."""

    def __init__(self, framing: Framing, syntax: CallSyntax | None) -> None:
        self._breaks = tuple(latin(mark) for mark in framing.breaks)
        think = framing.think
        self._open = latin(think.open) if think else None
        self._close = latin(think.close) if think else ""
        self._resume = latin(think.resume) if think else ""
        self._trigger = latin(syntax.trigger) if syntax else None
        self.trigger = syntax.trigger.encode() if syntax else b""
        only_at_start = syntax is not None and syntax.only_at_start
        self._start_marks = tuple(
            mark for mark in (*self._breaks, self._open, self._trigger) if mark
        )
        in_text = None if only_at_start else self._trigger
        self._text_marks = tuple(mark for mark in (*self._breaks, in_text) if mark)
        self.beginning = FreeText(Place.THINK if framing.starts_thinking else Place.START)

    def step(self, state: FreeText, piece: bytes) -> FreeText | Called:
        buffer = state.tail + piece.decode("latin-1")
        place = state.place
        while True:
            if place is Place.START:
                body = buffer.lstrip(" \t\r\n")
                mark = next((m for m in self._start_marks if body.startswith(m)), None)
                if mark is None:
                    if any(m.startswith(body) for m in self._start_marks):
                        return FreeText(place, buffer)
                    place = Place.TEXT
                    continue
                buffer = body[len(mark) :]
                if mark == self._trigger:
                    return Called(buffer.encode("latin-1"))
                if mark == self._open:
                    place = Place.THINK
            elif place is Place.THINK:
                at = buffer.find(self._close)
                if at < 0:
                    keep = held_back(buffer, (self._close,))
                    return FreeText(place, buffer[len(buffer) - keep :])
                buffer = buffer[at + len(self._close) :]
                place = Place.START
            else:
                found = find_first(buffer, self._text_marks)
                if found is None:
                    keep = held_back(buffer, self._text_marks)
                    return FreeText(place, buffer[len(buffer) - keep :])
                at, mark = found
                buffer = buffer[at + len(mark) :]
                if mark == self._trigger:
                    return Called(buffer.encode("latin-1"))
                if mark == self._resume:
                    place = Place.START
