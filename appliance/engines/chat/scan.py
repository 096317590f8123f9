"""Finding marks in text that arrives in pieces."""

from __future__ import annotations

import re
from collections.abc import Sequence


def find_first(text: str, marks: Sequence[str]) -> tuple[int, str] | None:
    """The earliest mark in `text` and its place; of two at one place, the longer."""
    best: tuple[int, str] | None = None
    for mark in marks:
        at = text.find(mark)
        if at >= 0 and (best is None or (at, -len(mark)) < (best[0], -len(best[1]))):
            best = at, mark
    return best


def held_back(text: str, marks: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a mark."""
    return max((_overlap(text, mark) for mark in marks), default=0)


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `mark`."""
    at = text.find(mark[0], max(0, len(text) - len(mark) + 1))
    while at >= 0:
        if mark.startswith(text[at:]):
            return len(text) - at
        at = text.find(mark[0], at + 1)
    return 0


def loose(literal: str) -> str:
    """A pattern for a literal, indifferent to how much white space stands where it has some."""
    return r"\s*".join(re.escape(part) for part in re.split(r"\s+", literal))
