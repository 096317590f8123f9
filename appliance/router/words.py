"""A text's words: where they are, their hashes, which of them mean something, and their sketch.

The *sketch* is the words and pairs of words, hashed with signs into a few hundred buckets (a count
sketch: inner products of sketches estimate inner products of word counts).

Everything is done on the array of bytes at once: a word's hash is a difference of two running sums
of (byte x power), and one search among the hundred words that mean something finds all of them.
Regular expressions and a Python loop over 700 words would take ten times as long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from appliance.router.types import MAX_TEXT_CHARS

Floats = NDArray[np.float32]

SKETCH_SIZE = 256
_BITS = 8
_MULTIPLIER: Final = 0x9E3779B97F4A7C15
_MIX: Final = 0xD6E8FEB86659FD93
_MAX_WORD = 24
"""Bytes of a word that enter its hash; longer ones are alike by their beginning."""

_USUAL_BYTES: Final = 4 * MAX_TEXT_CHARS


def _powers(base: int, first: int, count: int) -> NDArray[np.uint64]:
    """`first`, `first` x `base`, ... modulo 2^64."""
    factors = np.full(count, base, np.uint64)
    factors[0] = first
    return np.cumprod(factors, dtype=np.uint64)


_INVERSE: Final = pow(_MULTIPLIER, -1, 1 << 64)
_UP, _DOWN = _powers(_MULTIPLIER, _MULTIPLIER, _USUAL_BYTES), _powers(_INVERSE, 1, _USUAL_BYTES)

IN_WORD, DIGIT, FULL_STOP, BLANK = 1, 2, 4, 8
"""Bits of a byte's class; those of what ends a sentence are neighbours."""


def _class(byte: int) -> int:
    """In a word are letters, digits, the apostrophe and all of UTF-8 beyond ASCII."""
    if 48 <= byte <= 57:
        return IN_WORD | DIGIT
    if byte >= 128 or byte == 39 or chr(byte).isalpha():
        return IN_WORD
    return BLANK if byte <= 32 else FULL_STOP * (chr(byte) in ".?!")


_CLASSES = bytes(map(_class, range(256)))


def _hash_words(
    data: NDArray[np.uint8], starts: NDArray[np.intp], ends: NDArray[np.intp]
) -> NDArray[np.uint64]:
    """The 64-bit hash of each word `data[start:end]`: the sum of (byte + 1) x power, where powers
    count from the word's start. Counting them from the text's and dividing by the start's own
    (all modulo 2^64) takes one running sum for all words."""
    up, down = _UP, _DOWN
    if len(data) > _USUAL_BYTES:
        up, down = _powers(_MULTIPLIER, _MULTIPLIER, len(data)), _powers(_INVERSE, 1, len(data))
    sums = np.zeros(len(data) + 1, np.uint64)
    terms = sums[1:]
    np.add(data, np.uint64(1), out=terms)
    terms *= up[: len(data)]
    terms.cumsum(out=terms)
    words: NDArray[np.uint64] = sums[np.minimum(ends, starts + _MAX_WORD)] - sums[starts]
    words *= down[starts]
    words ^= words >> np.uint64(31)
    words *= np.uint64(_MIX)
    return words


def _hashes_of(words: str) -> NDArray[np.uint64]:
    lowered = words.encode()
    starts, ends = runs_of(_kinds(lowered), IN_WORD)
    return np.sort(_hash_words(np.frombuffer(lowered, np.uint8), starts, ends))


def _kinds(lowered: bytes) -> NDArray[np.uint8]:
    """The class of each byte, with one of none before and after."""
    return np.frombuffer(b"".join((b"\0", lowered.translate(_CLASSES), b"\0")), np.uint8)


def runs_of(kinds: NDArray[np.uint8], which: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where runs of bytes of a class (one bit) start, and where they end."""
    inside = kinds & which
    edges = (inside[1:] != inside[:-1]).nonzero()[0]
    return edges[::2], edges[1::2]


_STOP = _hashes_of(
    "a an the of to in is are was were be been and or for on at by with that this it its as from "
    "which what who how when where following than then there has have had do does did not can will "
    "would should could may he she they his her their you your i we if all any each but about into"
)
CUES = {
    "negated": _hashes_of("not except false least incorrect never without neither nor none isn't"),
    "shares": _hashes_of(
        "half third quarter twice times double triple percent fraction ratio rate average"
    ),
    "chained": _hashes_of(
        "each every per total more less left remaining if then after before than rest another"
    ),
    "asks_why": _hashes_of("why explain prove derive compare evaluate justify discuss"),
    "which": _hashes_of("which"),
    "joined": _hashes_of("and also both respectively then"),
    "catch_all": _hashes_of("all none both neither cannot"),
    "works_out": _hashes_of("calculate compute find determine solve estimate value equation many"),
}
KNOWN = np.unique(np.concatenate((_STOP, *CUES.values(), [np.uint64(2**64 - 1)])))
"""All words that mean something, in order, then one for all others."""
IS_TOLD = ~np.isin(KNOWN, _STOP)
"""Of those, which say what a text is about: all but the commonest."""
IS_CUE = np.array([np.isin(KNOWN, few) for few in CUES.values()], np.float64)


@dataclass(frozen=True, slots=True)
class Words:
    """A text's bytes and their classes (`_kinds`), where its words are, their hashes, and which
    of `KNOWN` they are."""

    raw: NDArray[np.uint8]
    kinds: NDArray[np.uint8]
    starts: NDArray[np.intp]
    ends: NDArray[np.intp]
    hashes: NDArray[np.uint64]
    known: NDArray[np.intp]


def words_of(text: str) -> Words:
    """The words of a text, as they are when small."""
    written, lowered = text.encode("utf-8", "replace"), text.lower().encode("utf-8", "replace")
    if len(lowered) != len(written):  # a letter whose small one is longer or shorter, as Turkish İ
        lowered = written.lower()
    raw, kinds = np.frombuffer(written, np.uint8), _kinds(lowered)
    starts, ends = runs_of(kinds, IN_WORD)
    hashes = _hash_words(np.frombuffer(lowered, np.uint8), starts, ends)
    return Words(raw, kinds, starts, ends, hashes, _known(hashes))


def sketch(words: Words) -> Floats:
    """(SKETCH_SIZE,) of length one, zero without words: those that say something, and pairs of
    neighbours, signed and folded; damped by log."""
    told = words.hashes[IS_TOLD[words.known]]
    pairs = told[:-1] * np.uint64(_MULTIPLIER)
    pairs ^= told[1:]
    pairs ^= pairs >> np.uint64(29)
    pairs *= np.uint64(_MIX)
    both = np.concatenate((told, pairs))
    bucket = (both >> np.uint64(64 - _BITS)).astype(np.intp)
    signs = ((both >> np.uint64(20)) & np.uint64(1)).astype(np.float64)
    signs += signs
    signs -= 1.0
    signs[len(told) :] *= 0.7
    sums = np.bincount(bucket, signs, SKETCH_SIZE)
    damped = np.copysign(np.log1p(np.abs(sums)), sums)
    norm = math.sqrt(damped @ damped)
    return (damped / norm if norm > 0 else damped).astype(np.float32)


def distinct(hashes: NDArray[np.uint64]) -> int:
    """How many different ones."""
    in_order = np.sort(hashes)
    return int(np.count_nonzero(in_order[1:] != in_order[:-1])) + (len(hashes) > 0)


def _known(hashes: NDArray[np.uint64]) -> NDArray[np.intp]:
    """The place of each in `KNOWN`; the last is for all others."""
    place = KNOWN.searchsorted(hashes)
    place[KNOWN[place] != hashes] = len(KNOWN) - 1
    return place
