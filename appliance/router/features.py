"""What can be read off a text in a fifth of a millisecond: its shape, and a sketch of its words.

*Shape* is some forty numbers: how long, how many sentences, numbers, options, tools and parameters,
how much of it is formula or code, how alike the options are. On public outcomes, shape orders
questions by how much a stronger model helps better than words do, and unlike words it holds for
subjects never seen. The sketch (`words.sketch`) finds what is alike to something seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from appliance.router.tools import MOST_REQUIRED, TOOL_CHARS, TOOL_NAMES, TOOL_SIZE
from appliance.router.words import (
    BLANK,
    CUES,
    DIGIT,
    IS_CUE,
    IS_TOLD,
    KNOWN,
    Floats,
    Words,
    distinct,
    runs_of,
    sketch,
    words_of,
)

_CATCH_ALL, _JOINED = list(CUES).index("catch_all"), list(CUES).index("joined")
SHAPE_NAMES = (
    "chars", "stem_chars", "stem_words", "word_length", "numbers", "distinct_numbers", "fractions",
    "sentences", "options",
    "option_chars", "option_spread", "option_digits", "long_words", "percent", "latex", "equals",
    "upper", "questions", "blank", "ends_colon", "distinct", "money", "decimals", "big_numbers",
    "option_overlap", "option_repeats", "commas", "code", "non_ascii", "lines", "digits_share",
    *CUES, *TOOL_NAMES, "asked_joined", "asked_numbers", "asked_parts", "asked_quotes",
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
    seen = words_of(text)
    return TextFeatures(_shape(seen, tools), sketch(seen))


def _among(words: NDArray[np.uint64], few: NDArray[np.uint64]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = few[np.minimum(np.searchsorted(few, words), len(few) - 1)] == words
    return found


def _option_starts(raw: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Where lines like `B. text` or `B) text` begin, if there are two or more of them."""
    lines = (raw[:-3] == 10).nonzero()[0] if len(raw) > 3 else np.zeros(0, np.intp)
    if not len(lines):
        return lines
    letter, mark = raw[lines + 1], raw[lines + 2]
    is_option = (letter >= 65) & (letter <= 90) & ((mark == 46) | (mark == 41))
    found: NDArray[np.intp] = lines[is_option & (raw[lines + 3] == 32)]
    return found if len(found) > 1 else found[:0]


def _shape(seen: Words, tools: tuple[float, ...]) -> Floats:
    raw, kinds, starts, words = seen.raw, seen.kinds[1:-1], seen.starts, seen.hashes
    options = _option_starts(raw)
    stem_end = int(options[0]) if len(options) else len(raw)
    stem = raw[:stem_end]
    count = np.bincount(stem, minlength=256).tolist()
    n_stem = int(starts.searchsorted(stem_end))
    stem_words, starts_in_stem = words[:n_stem], starts[:n_stem]
    is_number = (kinds[starts_in_stem] & DIGIT).astype(bool)
    lengths = seen.ends[:n_stem] - starts_in_stem
    n_words = max(1, n_stem)
    number_starts, number_ends = runs_of(seen.kinds, DIGIT)
    runs = number_ends - number_starts
    in_stem = int(number_starts.searchsorted(stem_end))
    between = raw[number_ends[:-1][number_starts[1:] - number_ends[:-1] == 1]]
    is_end = (kinds[: stem_end - 1] << 1) & kinds[1:stem_end] & BLANK if stem_end else kinds[:0]
    initials = stem[starts_in_stem]
    cues = IS_CUE @ np.bincount(seen.known[:n_stem], minlength=len(KNOWN))
    per_option = (0.0,) * 5
    cues[_CATCH_ALL] = 0.0
    if len(options):
        per_option = _options(seen, options, n_stem)
        last = np.bincount(seen.known[n_stem:], minlength=len(KNOWN))
        cues[_CATCH_ALL] = IS_CUE[_CATCH_ALL] @ last
    told_of_tools = math.expm1(tools[TOOL_CHARS]) if tools else 0.0
    values = [
        math.log1p(len(raw) + told_of_tools),
        math.log1p(stem_end),
        math.log1p(n_stem),
        int(np.add.reduce(lengths)) / n_words,
        math.log1p(in_stem),
        math.log1p(distinct(stem_words[is_number])),
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
        distinct(stem_words) / n_words,
        float(count[36] > 0),
        math.log1p(np.count_nonzero(between == 46)),
        math.log1p(np.count_nonzero(runs >= 4)),
        *per_option[3:],
        math.log1p(count[44]),
        float(min(20, count[123] + count[59])) / 5,
        math.log1p(sum(count[128:])),
        math.log1p(count[10]),
        int(np.add.reduce(runs)) / max(1, len(raw)),
        *np.log1p(cues).tolist(),
        *_asked_of_tools(tools, stem, starts_in_stem, count, float(cues[_JOINED]), in_stem),
    ]
    return np.array(values, np.float32)


def _options(
    seen: Words, options: NDArray[np.intp], n_stem: int
) -> tuple[float, float, float, float, float]:
    """Mean log length, its spread, share with digits; share that repeats a word of the question,
    share of words that stand in more than one option."""
    words, n_options = seen.hashes, len(options)
    sizes = np.log1p(np.diff(options, append=len(seen.raw)))
    has_digit = np.bitwise_or.reduceat(seen.kinds[1:-1], options) & DIGIT
    tail, where = words[n_stem:], options.searchsorted(seen.starts[n_stem:], side="right")
    told = IS_TOLD[seen.known[n_stem:]]
    tail, where = tail[told], where[told]
    in_stem = np.sort(words[:n_stem]) if n_stem else np.zeros(1, np.uint64)
    overlap = len(np.unique(where[_among(tail, in_stem)])) / n_options
    once = distinct(tail ^ where.astype(np.uint64))
    repeats = 1.0 - distinct(tail) / max(1, once)
    digits = float(has_digit.mean()) / DIGIT
    return float(sizes.mean()), float(sizes.std()), digits, overlap, repeats


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
