"""A model's tokens as the constraint library wants them, plus 256 of our own.

The library checks token by token, but we also need to walk its grammars byte by byte: to hand it
the rest of a token that crossed into a call, and to look for the shortest way out of one. So the
vocabulary is extended by one virtual token for each byte, past the model's last id; the model can
never sample them. Their bits stand in the last eight words of every mask, so the bytes a grammar
allows next can be read off at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance._tokenizer import TokenizerWrapper
from numpy.typing import NDArray

_WORD = 32


class Vocabulary:
    """`tokens[i]` are the bytes of token `i`, control tokens as their text. `end_ids` end an
    answer."""

    def __init__(
        self, tokens: Sequence[bytes], end_ids: Sequence[int], special_ids: Sequence[int]
    ) -> None:
        self.size = len(tokens)
        self.tokens = list(tokens)
        self.end_ids = tuple(end_ids)
        self.words = (self.size + _WORD - 1) // _WORD
        self.first_byte = self.words * _WORD
        special = set(special_ids)
        self.special: dict[str, int] = {}
        for token in sorted(special):
            text = tokens[token].decode("utf-8", "replace")
            if text:
                self.special.setdefault(text, token)
        self._with_byte: dict[bytes, list[tuple[int, bytes]]] = {}
        self._longest = 1
        self._by_bytes: dict[bytes, int] = {}
        for token, piece in enumerate(self.tokens):
            if piece and token not in special:
                self._by_bytes.setdefault(piece, token)
                self._longest = max(self._longest, len(piece))
        self.everything = self._mask_of(bool(piece) for piece in self.tokens)
        padding = [b""] * (self.first_byte - self.size)
        source = _Source(
            tokens=[*self.tokens, *padding, *(bytes([byte]) for byte in range(256))],
            eos_token_id=self.end_ids[0],
            special_token_ids=[*special, *range(self.size, self.first_byte)],
            first_byte=self.first_byte,
        )
        self.library = LLTokenizer(
            TokenizerWrapper(source),
            n_vocab=len(source.tokens),
            eos_token=list(self.end_ids),
            slices=LLTokenizer.json_slices(),
        )

    def ending_like(self, mark: bytes) -> list[tuple[int, bytes]]:
        """The tokens that could complete `mark`: those with its last byte in them."""
        last = mark[-1:]
        if last not in self._with_byte:
            self._with_byte[last] = [
                (token, piece) for token, piece in enumerate(self.tokens) if last in piece
            ]
        return self._with_byte[last]

    def virtual(self, data: bytes) -> list[int]:
        """One virtual token a byte."""
        return [self.first_byte + byte for byte in data]

    def encode(self, data: bytes) -> list[int] | None:
        """Real tokens for plain bytes, longest first; None where a byte has no token."""
        found: list[int] = []
        at = 0
        while at < len(data):
            for size in range(min(self._longest, len(data) - at), 0, -1):
                token = self._by_bytes.get(data[at : at + size])
                if token is not None:
                    found.append(token)
                    at += size
                    break
            else:
                return None
        return found

    def encode_with_controls(self, text: str) -> list[int] | None:
        """Real tokens for a text, control tokens in it as such."""
        found: list[int] = []
        while text:
            at, mark = len(text), ""
            for candidate in self.special:
                place = text.find(candidate)
                if 0 <= place < at:
                    at, mark = place, candidate
            plain = self.encode(text[:at].encode())
            if plain is None:
                return None
            found += plain
            if mark:
                found.append(self.special[mark])
            text = text[at + len(mark) :]
        return found

    def mask(self, matcher: LLMatcher) -> NDArray[np.uint32]:
        """The library's mask, virtual tokens included."""
        return np.frombuffer(matcher.compute_bitmask(), dtype=np.uint32)

    def _mask_of(self, allowed: Iterable[bool]) -> NDArray[np.uint32]:
        bits = np.zeros(self.first_byte, dtype=bool)
        bits[: self.size] = np.fromiter(allowed, dtype=bool, count=self.size)
        return np.packbits(bits, bitorder="little").view(np.uint32)


@dataclass(slots=True)
class _Source:
    """What the library's wrapper asks of a tokeniser."""

    tokens: list[bytes]
    eos_token_id: int
    special_token_ids: list[int]
    first_byte: int
    bos_token_id: int | None = field(default=None)

    def __call__(self, text: bytes | str) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        return [self.first_byte + byte for byte in data]
