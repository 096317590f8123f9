"""A loaded model's vocabulary: text to tokens, tokens to bytes. Safe to use from two threads."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

import llama_cpp as lib

from appliance.engines.chat.marks import Segment
from appliance.engines.llamacpp.said import Said

MAX_PIECE_BYTES: Final = 512


class Vocab:
    """`model` is the library's handle; the vocabulary lives as long as the model."""

    def __init__(self, model: Any) -> None:
        self.handle = lib.llama_model_get_vocab(model)
        self.size: int = lib.llama_vocab_n_tokens(self.handle)
        self.bos = int(lib.llama_vocab_bos(self.handle))
        self.eos = int(lib.llama_vocab_eos(self.handle))
        self.adds_bos = bool(lib.llama_vocab_get_add_bos(self.handle))
        self._pieces: list[bytes | None] = [None] * self.size

    def text_of(self, token: int) -> str:
        """A token's text, control tokens printed; empty for a token that is not there (-1)."""
        return self.piece(token).decode("utf-8", "replace") if 0 <= token < self.size else ""

    def piece(self, token: int) -> bytes:
        """A token's bytes, control tokens printed."""
        known = self._pieces[token]
        if known is None:
            known = self._pieces[token] = self._render(token)
        return known

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Every token with which the model means to stop."""
        is_end = lib.llama_vocab_is_eog
        return frozenset(t for t in range(self.size) if is_end(self.handle, t))

    @cached_property
    def special_ids(self) -> tuple[int, ...]:
        """Control and user-defined tokens."""
        wanted = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_USER_DEFINED
        attributes = lib.llama_vocab_get_attr
        return tuple(t for t in range(self.size) if attributes(self.handle, t) & wanted)

    @cached_property
    def pieces(self) -> list[bytes]:
        """The bytes of every token."""
        return [self.piece(token) for token in range(self.size)]

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Tokens that a text must not be read as, and that are no text."""
        control = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        attributes = lib.llama_vocab_get_attr
        return frozenset(t for t in range(self.size) if attributes(self.handle, t) & control)

    @cached_property
    def control_pattern(self) -> re.Pattern[str]:
        """Matches the text of any control token, the longest first."""
        texts = {self.text_of(token) for token in self.control_ids}
        longest_first = sorted(filter(None, texts), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def tokenise(
        self, text: str, *, parse_special: bool = False, add_special: bool = False
    ) -> list[int]:
        """Tokens of `text`; control tokens are recognised only with `parse_special`."""
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        while True:
            tokens = (lib.llama_token * room)()
            count = lib.llama_tokenize(
                self.handle, data, len(data), tokens, room, add_special, parse_special
            )
            if count >= 0:
                return list(tokens[:count])
            room = -count

    def tokenise_segments(
        self, segments: Sequence[Segment], *, adds_bos: bool, said: Said
    ) -> list[int]:
        """Tokens of a prompt: control tokens read in trusted segments only (see `runs`), the
        model's own earlier answers as it spelled them (see `said.py`)."""
        tokens: list[int] = []
        if adds_bos and self.adds_bos and self.bos >= 0:
            tokens.append(self.bos)
        between: list[Segment] = []
        for segment in segments:
            known = None if segment.trusted else said.tokens_of(segment.text)
            if known is None:
                between.append(segment)
                continue
            tokens += self._tokenise_runs(between)
            tokens += known
            between = []
        return tokens + self._tokenise_runs(between)

    def _tokenise_runs(self, segments: Sequence[Segment]) -> list[int]:
        tokens: list[int] = []
        for text, parse_special in runs(segments, self.control_pattern):
            tokens += self.tokenise(text, parse_special=parse_special)
        return tokens

    def _render(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(MAX_PIECE_BYTES)
        size = lib.llama_token_to_piece(self.handle, token, buffer, MAX_PIECE_BYTES, 0, True)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = lib.llama_token_to_piece(self.handle, token, buffer, -size, 0, True)
        return buffer.raw[:size]


def runs(segments: Sequence[Segment], control: re.Pattern[str]) -> list[tuple[str, bool]]:
    """The prompt in as few pieces as is safe: (text, whether control tokens may be read in it).

    A tokeniser merges across characters, so a prompt cut at every segment gets other tokens than
    the same text whole (and a SentencePiece model a spurious space at each cut). So everything is
    one run, except where the text of a control token would touch untrusted text: those segments
    are tokenised apart, as the plain text they are.
    """
    whole = "".join(segment.text for segment in segments)
    marks = [match.span() for match in control.finditer(whole)]
    found: list[tuple[str, bool]] = []
    joined: list[str] = []
    position = 0
    for segment in segments:
        start, position = position, position + len(segment.text)
        is_touched = not segment.trusted and any(a < position and b > start for a, b in marks)
        if not is_touched:
            joined.append(segment.text)
            continue
        if joined:
            found.append(("".join(joined), True))
            joined = []
        found.append((segment.text, False))
    if joined:
        found.append(("".join(joined), True))
    return found
