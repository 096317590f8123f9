"""What a reply comes down to, so that two replies can be compared: its calls, or its last word.

Prose has no such thing: two good summaries share no sentence. There the answer is empty, and what
compares answers (votes of samples, a stronger model's answer) has nothing to say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from appliance.types import Json

MAX_LAST_WORD_CHARS = 40
_ANNOUNCED = re.compile(
    r"(?:answer(?:\s+is)?\s*[:=]?|result\s+is|####)\s*\**\s*[(\[]?([^\n*]{1,40}?)[)\]]?\**\.?\s*$",
    re.IGNORECASE | re.MULTILINE,
)
_BOXED = re.compile(r"\\boxed\{([^{}]{1,40})\}")
NUMBER = re.compile(r"-?\d+(\.\d+)?")
_LETTER = re.compile(r"\(?([A-Z])[).:]?(?:\s.*)?")


def said(text: str, calls: Iterable[tuple[str, Mapping[str, Json]]] = ()) -> str:
    """The calls in one spelling; else what is boxed, announced as the answer, or all there is on
    a short last line; else nothing."""
    made = [[name, dict(arguments)] for name, arguments in calls]
    if made:
        return json.dumps(made, sort_keys=True, ensure_ascii=False)
    for pattern in (_BOXED, _ANNOUNCED):
        if found := pattern.findall(text):
            return _letter_or_all(found[-1].strip())
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if lines and len(lines[-1]) <= MAX_LAST_WORD_CHARS and (len(lines) > 1 or len(text) < 80):
        return _letter_or_all(lines[-1].strip("* "))
    return ""


def plain(answer: str) -> str:
    """The answer without what does not change it: case, spaces, currency, thousands' commas."""
    short = answer.strip().lower()
    for mark in ("$", ",", " ", "\\", "%"):
        short = short.replace(mark, "")
    short = short.rstrip(".")
    if NUMBER.fullmatch(short) and len(short) < 16:
        return repr(round(float(short), 6))
    return short


def is_same(one: str, other: str) -> bool | None:
    """Whether two such answers agree; None where either has none."""
    return plain(one) == plain(other) if one and other else None


def _letter_or_all(answer: str) -> str:
    found = _LETTER.fullmatch(answer)
    return found.group(1) if found else answer
