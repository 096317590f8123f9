"""From a request to tokens: what the loop needs to know of a prompt, prepared off its thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from appliance.engines.llamacpp.binding import Model
from appliance.types import (
    Delta,
    GenerateRequest,
    Message,
    Role,
    StopReason,
    TextBlock,
    TextDelta,
    ToolSpec,
    text_message,
)


class Parser(Protocol):
    """Turns generated text into deltas and, at the end, into the message."""

    def feed(self, text: str) -> list[Delta]: ...

    def finish(self, reason: StopReason) -> tuple[list[Delta], Message, StopReason]: ...


@dataclass(frozen=True, slots=True)
class Prepared:
    tokens: tuple[int, ...]
    stops: tuple[str, ...]
    parser: Parser
    checkpoint: int = 0
    """Tokens after which the cache's state is worth keeping; 0 where it can be cut anyway."""


class PlainParser:
    """All text is the answer."""

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def feed(self, text: str) -> list[Delta]:
        if not text:
            return []
        self._pieces.append(text)
        return [TextDelta(text)]

    def finish(self, reason: StopReason) -> tuple[list[Delta], Message, StopReason]:
        text = "".join(self._pieces)
        return [], text_message(Role.ASSISTANT, text), reason


class Preparer:
    """Renders and tokenises; used from one thread, which is not the loop's."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def prepare(self, request: GenerateRequest) -> Prepared:
        tokens = self.tokens(request.messages, request.tools)
        return Prepared(tuple(tokens), request.sampling.stop, PlainParser())

    def tokens(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[int]:
        tokens: list[int] = []
        for message in messages:
            tokens += self._model.tokenise(
                f"<|im_start|>{message.role.value}\n", parse_special=True
            )
            text = "".join(b.text for b in message.blocks if isinstance(b, TextBlock))
            tokens += self._model.tokenise(text, parse_special=False)
            tokens += self._model.tokenise("<|im_end|>\n", parse_special=True)
        return tokens + self._model.tokenise("<|im_start|>assistant\n", parse_special=True)
