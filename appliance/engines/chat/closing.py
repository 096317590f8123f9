"""The way out: how a half-written call can be finished in few tokens.

A grammar's matcher can say which bytes may come next, but not how far the end is. So we walk:
copy the matcher (a microsecond), and at each step take the bytes it forces, or else the byte that
most likely leads out: closing brackets and quotes before separators, digits before letters,
opening brackets last. A byte just used is less attractive, or a pattern like `(ab)*c` would hold
us for ever. The walk is not the shortest, but it is a walk through the grammar: what it finds is
valid, and the constraint only needs to know *one* way that fits.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from appliance.engines.chat.vocabulary import Vocabulary

STEPS_LIMIT = 4096
"""Bytes of one way out; schemas that demand more than this get no guarantee."""

_CONTROL = re.compile(rb"\xff\[(\d+)\]")
_CONTROL_BYTE = 0xFF
"""Begins a control token in the library's byte view; never part of UTF-8."""
_ORDER = b'}]"0123456789' + bytes(range(ord("a"), ord("z") + 1))
_LAST = b"[{\\-"
_REPEAT_COST = 300
_QUOTE = ord('"')
_FREE_STRING = 24
"""From so many choices on we must be inside a string, where the quote is the way out."""


def way_out(
    matcher: LLMatcher,
    vocabulary: Vocabulary,
    *,
    exits: Sequence[bytes] = (),
    preferred: Collection[int] = (),
) -> list[int] | None:
    """Real tokens from the matcher's state to an accepting one, or None if the walk found none.

    `exits` are texts to try first wherever they fit (a closing tag), `preferred` the control tokens
    to choose where the grammar leaves a choice of them.
    """
    walker = matcher.deep_copy()
    parts: list[bytes | int] = []
    uses = [0] * 256
    for _ in range(STEPS_LIMIT):
        if walker.is_accepting():
            return _as_tokens(parts, matcher, vocabulary)
        step = _next_step(walker, vocabulary, exits, preferred, uses)
        if not step:
            return None
        for part in step:
            tokens = [part] if isinstance(part, int) else vocabulary.virtual(part)
            if not walker.consume_tokens(tokens):
                return None
            parts.append(part)
    return None


def _next_step(
    walker: LLMatcher,
    vocabulary: Vocabulary,
    exits: Sequence[bytes],
    preferred: Collection[int],
    uses: list[int],
) -> list[bytes | int]:
    for text in exits:
        tokens = vocabulary.virtual(text)
        if walker.validate_tokens(tokens) == len(tokens):
            return [text]
    forced = _split(walker.compute_ff_bytes())
    if forced:
        return forced
    mask = vocabulary.mask(walker)
    byte = _best_byte(mask[vocabulary.words : vocabulary.words + 8], uses)
    if byte is not None:
        uses[byte] += 1
        if byte == _QUOTE:
            uses[:] = [0] * 256
        return [bytes([byte])]
    allowed = [token for token in preferred if mask[token >> 5] >> (token & 31) & 1]
    return [allowed[0]] if allowed else []


def _best_byte(words: NDArray[np.uint32], uses: list[int]) -> int | None:
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    allowed = np.flatnonzero(bits[:_CONTROL_BYTE])
    if len(allowed) >= _FREE_STRING and _QUOTE in allowed:
        return _QUOTE
    ranked = ((uses[byte] * _REPEAT_COST + _RANK[byte], int(byte)) for byte in allowed)
    return min(ranked, default=(0, None))[1]


def _rank(byte: int) -> int:
    if byte in _ORDER:
        return _ORDER.index(byte)
    if byte in _LAST:
        return 200 + _LAST.index(byte)
    return 100 if byte < 128 else 250


_RANK = [_rank(byte) for byte in range(256)]


def _split(forced: bytes) -> list[bytes | int]:
    """The library's forced bytes: plain runs, and control tokens written as `\\xff[id]`."""
    parts: list[bytes | int] = []
    at = 0
    for match in _CONTROL.finditer(forced):
        if match.start() > at:
            parts.append(forced[at : match.start()])
        parts.append(int(match[1]))
        at = match.end()
    # Two control tokens may share the first digits of their ids: no step by itself.
    rest = forced[at:].split(b"\xff", 1)[0]
    if rest:
        parts.append(rest)
    return parts


def _as_tokens(
    parts: Sequence[bytes | int], matcher: LLMatcher, vocabulary: Vocabulary
) -> list[int] | None:
    tokens: list[int] = []
    run = b""
    for part in [*parts, -1]:
        if isinstance(part, bytes):
            run += part
            continue
        encoded = vocabulary.encode(run)
        if encoded is None:
            return None
        tokens += encoded
        run = b""
        if part >= 0:
            tokens.append(part)
    return tokens if matcher.validate_tokens(tokens) == len(tokens) else None
