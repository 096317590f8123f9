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
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher

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
_COMMA = ord(",")
_IN_NUMBER = frozenset(b"0123456789.eE+-,")
_FEW_LETTERS = 6


@dataclass(frozen=True, slots=True)
class Hints:
    """What is known of a grammar's ends: `exits` are tried wherever there is a choice (the end of a
    raw string), `outside` only outside strings (a closing tag rather than one more argument),
    `endings` inside strings (the rest of an example for each pattern), `controls` where only
    control tokens may come, `ends` those of them that end a call, wherever they may come."""

    exits: tuple[bytes, ...] = ()
    outside: tuple[bytes, ...] = ()
    endings: tuple[bytes, ...] = ()
    controls: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()


def way_out(
    matcher: LLMatcher,
    vocabulary: Vocabulary,
    hints: Hints,
) -> list[int] | None:
    """Real tokens from the matcher's state to an accepting one, or None if the walk found none."""
    walker = matcher.deep_copy()
    parts: list[bytes | int] = []
    uses = [0] * 256
    for _ in range(STEPS_LIMIT):
        if walker.is_accepting():
            return _as_tokens(parts, matcher, vocabulary)
        step = _next_step(walker, vocabulary, hints, uses)
        if not step:
            return None
        for part in step:
            tokens = [part] if isinstance(part, int) else vocabulary.virtual(part)
            if not walker.consume_tokens(tokens):
                return None
            parts.append(part)
    return None


def leads_out(matcher: LLMatcher, way: list[int]) -> bool:
    """Whether a way found elsewhere ends here too."""
    if matcher.validate_tokens(way) < len(way):
        return False
    walker = matcher.deep_copy()
    return bool(walker.consume_tokens(way) and walker.is_accepting())


def _next_step(
    walker: LLMatcher,
    vocabulary: Vocabulary,
    hints: Hints,
    uses: list[int],
) -> Sequence[bytes | int]:
    forced = _split(walker.compute_ff_bytes())
    if forced:
        return forced
    mask = vocabulary.mask(walker)
    bits = np.unpackbits(
        mask[vocabulary.words : vocabulary.words + 8].view(np.uint8), bitorder="little"
    )
    allowed = frozenset(np.flatnonzero(bits[:_CONTROL_BYTE]).tolist())
    for token in hints.ends if allowed else hints.controls:
        if mask[token >> 5] >> (token & 31) & 1:
            return [token]
    if not allowed:
        return []
    in_string = _is_string(allowed)
    # A string of digits, as an address, does not look like one; a quote would be a string's first.
    texts = (b'"', *hints.endings) if in_string else (*hints.outside, *hints.endings[1:])
    for text in (*hints.exits, *texts):
        if text[0] in allowed and walker.validate_tokens(vocabulary.virtual(text)) == len(text):
            uses[:] = [0] * 256
            return [text]
    for closer in b"" if in_string else b"}]":
        if closer in allowed:
            return [bytes([closer])]
    if _COMMA in allowed and allowed <= _IN_NUMBER:
        # A number that may end here, before a key that must come: no digit more.
        return [b","]
    byte = min(allowed, key=lambda found: uses[found] * _REPEAT_COST + _RANK[found])
    uses[byte] += byte != _QUOTE
    return [bytes([byte])]


def _is_string(allowed: Collection[int]) -> bool:
    """Outside strings JSON knows few letters: those that begin true, false and null, or an
    exponent; a string's end may be all that is left of it."""
    return sum(_is_letter(byte) for byte in allowed) > _FEW_LETTERS or allowed == {_QUOTE}


def _is_letter(byte: int) -> bool:
    return 65 <= byte <= 90 or 97 <= byte <= 122 or byte > 127


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
