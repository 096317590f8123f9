"""A short string for a regular expression, so that a string under one can be ended.

Walking a pattern byte by byte ends well where the pattern leads somewhere (`[A-Z]{3}-\\d{4}`) and
badly where it wanders (`foo|bar` anywhere in the text, an address's `@`). A whole example is
easily built from the parsed pattern: every part at its shortest, the first branch that is. Its
suffixes are the ways to end a string that has come part of the way.
"""

from __future__ import annotations

import json
import re
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

LENGTH_LIMIT = 128
"""Characters of an example worth trying."""

_FORMATS = {
    "date-time": "2000-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "date": "2000-01-01",
    "duration": "P1D",
    "email": "a@a.aa",
    "hostname": "a.aa",
    "ipv4": "0.0.0.0",
    "ipv6": "::",
    "uuid": "00000000-0000-0000-0000-000000000000",
    "uri": "a://a",
}
_CLASSES = {
    codes.CATEGORY_DIGIT: "0",
    codes.CATEGORY_WORD: "a",
    codes.CATEGORY_SPACE: " ",
    codes.CATEGORY_NOT_DIGIT: "a",
    codes.CATEGORY_NOT_WORD: " ",
    codes.CATEGORY_NOT_SPACE: "a",
}


def endings(example: str) -> tuple[bytes, ...]:
    """The suffixes of an example as the rest of a JSON string, quote included, shortest first."""
    cut = (example[start:] for start in range(len(example), -1, -1))
    return tuple((json.dumps(text, ensure_ascii=False)[1:-1] + '"').encode() for text in cut)


def example_of_format(name: str) -> str | None:
    return _FORMATS.get(name)


def example_of_pattern(pattern: str) -> str | None:
    """A string in which the pattern is found, or None where we do not know how."""
    try:
        text = _shortest(parser.parse(pattern))
    except (re.error, _Unknown, OverflowError, RecursionError):
        return None
    return text if len(text) <= LENGTH_LIMIT and re.search(pattern, text) else None


class _Unknown(Exception):
    pass


def _shortest(parsed: Any) -> str:
    return "".join(_one(code, value) for code, value in parsed)


def _one(code: Any, value: Any) -> str:
    if code is codes.LITERAL:
        return chr(value)
    if code is codes.NOT_LITERAL:
        return "a" if value != ord("a") else "b"
    if code is codes.ANY:
        return "a"
    if code is codes.IN:
        return _member(value)
    if code is codes.BRANCH:
        branches = [_shortest(branch) for branch in value[1]]
        return min(branches, key=len)
    if code is codes.SUBPATTERN:
        return _shortest(value[-1])
    if code in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
        least = value[0]
        if least > LENGTH_LIMIT:
            raise _Unknown
        return _shortest(value[2]) * int(least)
    if code is codes.AT:
        return ""
    raise _Unknown


def _member(parts: Any) -> str:
    if parts[0][0] is codes.NEGATE:
        excluded = parts[1:]
        for text in "a0 -_/.AZz9\u00e4":
            if not any(_covers(code, value, text) for code, value in excluded):
                return text
        raise _Unknown
    code, value = parts[0]
    if code is codes.LITERAL:
        return chr(value)
    if code is codes.RANGE:
        return chr(value[0])
    if code is codes.CATEGORY and value in _CLASSES:
        return str(_CLASSES[value])
    raise _Unknown


def _covers(code: Any, value: Any, text: str) -> bool:
    if code is codes.LITERAL:
        return bool(ord(text) == value)
    if code is codes.RANGE:
        return bool(value[0] <= ord(text) <= value[1])
    if code is codes.CATEGORY:
        tests = {
            codes.CATEGORY_DIGIT: text.isdigit(),
            codes.CATEGORY_WORD: text.isalnum() or text == "_",
            codes.CATEGORY_SPACE: text.isspace(),
            codes.CATEGORY_NOT_DIGIT: not text.isdigit(),
            codes.CATEGORY_NOT_WORD: not (text.isalnum() or text == "_"),
            codes.CATEGORY_NOT_SPACE: not text.isspace(),
        }
        return bool(tests.get(value, True))
    return True
