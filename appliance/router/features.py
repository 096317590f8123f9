"""What can be read off a text in a tenth of a millisecond: its shape, and a sketch of its words.

*Shape* is some forty numbers: how long, how many sentences, numbers, options, tools and parameters,
how much of it is formula or code, how alike the options are. On public outcomes, shape orders
questions by how much a stronger model helps better than words do, and unlike words it holds for
subjects never seen. *Sketch* is the text's words and pairs of words, hashed with signs into a few
hundred buckets (a count sketch: inner products of sketches estimate inner products of word counts),
which finds what is alike to something seen.

Everything is done on the array of bytes at once: a word's hash is a difference of two running sums
of (byte x power), and one search among the few hundred words that mean something finds all of them.
Regular expressions and a Python loop over 700 words would take ten times as long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from appliance.router.tools import MOST_REQUIRED, TOOL_CHARS, TOOL_NAMES, TOOL_SIZE
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

_IN_WORD, _DIGIT, _FULL_STOP, _BLANK = 1, 2, 4, 8


def _class(byte: int) -> int:
    """In a word are letters, digits, the apostrophe and all of UTF-8 beyond ASCII."""
    if 48 <= byte <= 57:
        return _IN_WORD | _DIGIT
    if byte >= 128 or byte == 39 or chr(byte).isalpha():
        return _IN_WORD
    return _BLANK if byte <= 32 else _FULL_STOP * (chr(byte) in ".?!")


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
    terms = data.astype(np.uint64)
    terms += np.uint64(1)
    terms *= up[: len(data)]
    sums = np.zeros(len(data) + 1, np.uint64)
    terms.cumsum(out=sums[1:])
    words: NDArray[np.uint64] = sums[np.minimum(ends, starts + _MAX_WORD)] - sums[starts]
    words *= down[starts]
    words ^= words >> np.uint64(31)
    words *= np.uint64(_MIX)
    return words


def _hashes_of(words: str) -> NDArray[np.uint64]:
    lowered = words.encode()
    return np.sort(_hash_words(np.frombuffer(lowered, np.uint8), *_runs(_kinds(lowered), _IN_WORD)))


def _kinds(lowered: bytes) -> NDArray[np.uint8]:
    """The class of each byte, with one of none before and after."""
    return np.frombuffer(b"".join((b"\0", lowered.translate(_CLASSES), b"\0")), np.uint8)


def _runs(kinds: NDArray[np.uint8], which: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where runs of bytes of a class start, and where they end."""
    inside = (kinds & which).astype(bool)
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    return edges[::2], edges[1::2]


_STOP = _hashes_of(
    "a an the of to in is are was were be been and or for on at by with that this it its as from "
    "which what who how when where following than then there has have had do does did not can will "
    "would should could may he she they his her their you your i we if all any each but about into"
)
_CUES = {
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
_ANY = np.unique(np.concatenate((_STOP, *_CUES.values())))
_LAST: Final = np.uint64(2**64 - 1)
_KNOWN = np.append(_ANY, _LAST)
"""All words that mean something, then one for all others."""
_IS_STOP = np.isin(_KNOWN, _STOP)
_IS_CUE = np.array([np.isin(_KNOWN, few) for few in _CUES.values()], np.float64)
_CATCH_ALL, _JOINED = list(_CUES).index("catch_all"), list(_CUES).index("joined")
SHAPE_NAMES = (
    "chars", "stem_chars", "stem_words", "word_length", "numbers", "distinct_numbers", "fractions",
    "sentences", "options",
    "option_chars", "option_spread", "option_digits", "long_words", "percent", "latex", "equals",
    "upper", "questions", "blank", "ends_colon", "distinct", "money", "decimals", "big_numbers",
    "option_overlap", "option_repeats", "commas", "code", "non_ascii", "lines", "digits_share",
    *_CUES, *TOOL_NAMES, "asked_joined", "asked_numbers", "asked_parts", "asked_quotes",
    "asked_names", "asked_surplus",
)  # fmt: skip
SHAPE_SIZE = len(SHAPE_NAMES)
_ASKED_SIZE: Final = 6


@dataclass(frozen=True, slots=True)
class TextFeatures:
    """`shape` is (SHAPE_SIZE,) in natural units (counts as log1p); `sketch` (SKETCH_SIZE,) of
    length one (zero for an empty text)."""

    shape: Floats
    sketch: Floats


def read(text: str, tools: tuple[float, ...] = ()) -> TextFeatures:
    """Features of a user's text and of the tools beside it (`tools.tool_shape`)."""
    written, lowered = text.encode("utf-8", "replace"), text.lower().encode("utf-8", "replace")
    if len(lowered) != len(written):  # a letter whose small one is longer or shorter, as Turkish İ
        lowered = written.lower()
    raw, kinds = np.frombuffer(written, np.uint8), _kinds(lowered)
    starts, ends = _runs(kinds, _IN_WORD)
    words = _hash_words(np.frombuffer(lowered, np.uint8), starts, ends)
    known = _known(words)
    seen = _Seen(raw, kinds, starts, ends, words, known)
    return TextFeatures(_shape(seen, tools), _sketch(words[~_IS_STOP[known]]))


@dataclass(frozen=True, slots=True)
class _Seen:
    """A text's bytes and their classes (`_kinds`), where its words are, their hashes, and which
    of `_KNOWN` they are."""

    raw: NDArray[np.uint8]
    kinds: NDArray[np.uint8]
    starts: NDArray[np.intp]
    ends: NDArray[np.intp]
    words: NDArray[np.uint64]
    known: NDArray[np.intp]


def _known(words: NDArray[np.uint64]) -> NDArray[np.intp]:
    """The place of each word in `_KNOWN`; the last is for all others."""
    place = _KNOWN.searchsorted(words)
    place[_KNOWN[place] != words] = len(_KNOWN) - 1
    return place


def _sketch(told: NDArray[np.uint64]) -> Floats:
    """Words that say something, and pairs of neighbours, signed and folded; damped by log."""
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


def _distinct(words: NDArray[np.uint64]) -> int:
    """How many different ones."""
    in_order = np.sort(words)
    return int(np.count_nonzero(in_order[1:] != in_order[:-1])) + (len(words) > 0)


def _among(words: NDArray[np.uint64], few: NDArray[np.uint64]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = few[np.minimum(np.searchsorted(few, words), len(few) - 1)] == words
    return found


def _option_starts(raw: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Where lines like `B. text` or `B) text` begin, if there are two or more of them."""
    lines = np.flatnonzero(raw[:-3] == 10) if len(raw) > 3 else np.zeros(0, np.intp)
    if not len(lines):
        return lines
    letter, mark = raw[lines + 1], raw[lines + 2]
    is_option = (letter >= 65) & (letter <= 90) & ((mark == 46) | (mark == 41))
    found: NDArray[np.intp] = lines[is_option & (raw[lines + 3] == 32)]
    return found if len(found) > 1 else found[:0]


def _shape(seen: _Seen, tools: tuple[float, ...]) -> Floats:
    raw, kinds, starts, words = seen.raw, seen.kinds[1:-1], seen.starts, seen.words
    options = _option_starts(raw)
    stem_end = int(options[0]) if len(options) else len(raw)
    stem = raw[:stem_end]
    count = np.bincount(stem, minlength=256).tolist()
    n_stem = int(starts.searchsorted(stem_end))
    stem_words, starts_in_stem = words[:n_stem], starts[:n_stem]
    lengths = seen.ends[:n_stem] - starts_in_stem
    n_words = max(1, n_stem)
    number_starts, number_ends = _runs(seen.kinds, _DIGIT)
    runs = number_ends - number_starts
    in_stem = int(number_starts.searchsorted(stem_end))
    between = raw[number_ends[:-1][number_starts[1:] - number_ends[:-1] == 1]]
    is_end = (kinds[: stem_end - 1] << 1) & kinds[1:stem_end] & _BLANK if stem_end else kinds[:0]
    initials = stem[starts_in_stem]
    cues = _IS_CUE @ np.bincount(seen.known[:n_stem], minlength=len(_KNOWN))
    per_option = (0.0,) * 5
    cues[_CATCH_ALL] = 0.0
    if len(options):
        per_option = _options(seen, options, n_stem)
        last = np.bincount(seen.known[n_stem:], minlength=len(_KNOWN))
        cues[_CATCH_ALL] = _IS_CUE[_CATCH_ALL] @ last
    told_of_tools = math.expm1(tools[TOOL_CHARS]) if tools else 0.0
    values = [
        math.log1p(len(raw) + told_of_tools),
        math.log1p(stem_end),
        math.log1p(n_stem),
        float(lengths.sum()) / n_words,
        math.log1p(in_stem),
        math.log1p(_distinct(stem_words[(initials >= 48) & (initials <= 57)])),
        math.log1p(np.count_nonzero(between == 47)),
        math.log1p(np.count_nonzero(is_end)),
        len(options) / 10,
        *per_option[:3],
        np.count_nonzero(lengths >= 8) / n_words,
        float(count[37] > 0),
        math.log1p(count[92] + count[36]),
        math.log1p(count[61]),
        np.count_nonzero((initials >= 65) & (initials <= 90)) / n_words,
        float(min(3, count[63])),
        float(count[95] >= 3),
        float(stem_end > 0 and stem[-1] == 58),
        _distinct(stem_words) / n_words,
        float(count[36] > 0),
        math.log1p(np.count_nonzero(between == 46)),
        math.log1p(np.count_nonzero(runs >= 4)),
        *per_option[3:],
        math.log1p(count[44]),
        float(min(20, count[123] + count[59])) / 5,
        math.log1p(sum(count[128:])),
        math.log1p(count[10]),
        float(runs.sum()) / max(1, len(raw)),
        *np.log1p(cues).tolist(),
        *_asked_of_tools(tools, stem, starts_in_stem, count, float(cues[_JOINED]), in_stem),
    ]
    return np.array(values, np.float32)


def _options(
    seen: _Seen, options: NDArray[np.intp], n_stem: int
) -> tuple[float, float, float, float, float]:
    """Mean log length, its spread, share with digits; share that repeats a word of the question,
    share of words that stand in more than one option."""
    words, n_options = seen.words, len(options)
    sizes = np.log1p(np.diff(options, append=len(seen.raw)))
    has_digit = np.bitwise_or.reduceat(seen.kinds[1:-1], options) & _DIGIT
    tail, where = words[n_stem:], options.searchsorted(seen.starts[n_stem:], side="right")
    told = ~_IS_STOP[seen.known[n_stem:]]
    tail, where = tail[told], where[told]
    in_stem = np.sort(words[:n_stem]) if n_stem else np.zeros(1, np.uint64)
    overlap = len(np.unique(where[_among(tail, in_stem)])) / n_options
    once = _distinct(tail ^ where.astype(np.uint64))
    repeats = 1.0 - _distinct(tail) / max(1, once)
    return float(sizes.mean()), float(sizes.std()), float(has_digit.mean()) / _DIGIT, overlap, repeats


def _asked_of_tools(
    tools: tuple[float, ...],
    stem: NDArray[np.uint8],
    starts: NDArray[np.intp],
    count: list[int],
    joined: float,
    numbers: int,
) -> tuple[float, ...]:
    """The tools, and how much the request gives them to work with; all zero without tools, so
    that these features mean tools."""
    if not tools:
        return (0.0,) * (TOOL_SIZE + _ASKED_SIZE)
    quotes, names = _quotes(stem, count[34]), _names(stem, starts)
    asked = (
        joined + count[44],
        numbers,
        count[63] + count[46],
        quotes,
        names,
    )
    surplus = np.log1p(numbers + quotes + names) - np.log1p(3 * tools[MOST_REQUIRED])
    return (*tools, *np.log1p(asked).tolist(), float(surplus))


def _quotes(stem: NDArray[np.uint8], double: int) -> int:
    """Pairs of quotation marks: double ones, and single ones that open after a space."""
    single = (stem[1:] == 39) & (stem[:-1] == 32)
    return double // 2 + int(np.count_nonzero(single))


def _names(stem: NDArray[np.uint8], starts: NDArray[np.intp]) -> int:
    """Words with a capital in mid-sentence: after a small letter or a comma, and a space."""
    at = starts[starts >= 2]
    at = at[(stem[at] >= 65) & (stem[at] <= 90) & (stem[at - 1] == 32)]
    before = stem[at - 2]
    return int(np.count_nonzero(((before >= 97) & (before <= 122)) | (before == 44)))
