"""What one render may use: a meter of steps, characters and time, and operations that ask it first.

A template is a program from a stranger. It has no files and no network in the sandbox, so what is
left to it is to run long and to grow large. Python cannot interrupt one long C call (`"a" *
10**10`, a comparison of nested lists), and a timer signal works in the main thread only. So no
single operation may be long: everything that makes a value bigger than its operands asks before
it works, every container that comes into being is weighed (shared parts counted as often as they
appear, which is how often a printer would print them), and between operations the meter looks at
the clock.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from markupsafe import Markup

OUTPUT_LIMIT = 8 * 1024 * 1024
"""Characters of one text; the largest windows take some 4 MB."""
WORK_LIMIT = 128 * 1024 * 1024
"""Characters produced by all operations of one render."""
STEPS_LIMIT = 2_000_000
DEADLINE_S = 2.0
"""A render of 500 messages takes some 20 ms."""
WEIGHT_LIMIT = 4 * 1024 * 1024
RANGE_LIMIT = 10_000
INTEGER_BITS_LIMIT = 4096
_ITEM_WEIGHT = 16
_CLOCK_EVERY = 32
_WIDE = re.compile(r"%[^a-zA-Z%]*(\d{3,}|\*)")
_DATE_FORMAT = re.compile(r"([^%]|%-?[a-zA-Z%]){0,64}")


class Limit(Exception):
    """A template asked for more than it may have."""


class Meter:
    """What one render has used so far."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deadline = clock() + DEADLINE_S
        self._steps = 0
        self._work = 0

    def step(self) -> None:
        self._steps += 1
        if self._steps > STEPS_LIMIT:
            raise Limit("too many steps")
        if self._steps % _CLOCK_EVERY == 0 and self._clock() > self._deadline:
            raise Limit(f"it takes longer than {DEADLINE_S:g} s")

    def made(self, value: Any) -> Any:
        """Account for the result of an operation; returns it."""
        self.step()
        if isinstance(value, str):
            self._work += len(value)
        elif isinstance(value, list | tuple | dict):
            self._work += weigh(value)
        if self._work > WORK_LIMIT:
            raise Limit("too much text is produced")
        return value


def weigh(value: Any) -> int:
    """Characters and items of a value, nested ones included. Raises `Limit` where it is too much;
    takes time in proportion to the limit at most."""
    weight = 0
    pending = [value]
    while pending:
        found = pending.pop()
        weight += _ITEM_WEIGHT
        if isinstance(found, str):
            weight += len(found)
        elif isinstance(found, Mapping):
            weight += _ITEM_WEIGHT * len(found)
            if weight <= WEIGHT_LIMIT:
                pending += found.keys()
                pending += found.values()
        elif isinstance(found, list | tuple | set | frozenset):
            weight += _ITEM_WEIGHT * len(found)
            if weight <= WEIGHT_LIMIT:
                pending += found
        if weight > WEIGHT_LIMIT:
            raise Limit("a value is too large")
    return weight


def text_of(value: Any) -> str:
    """`str`, of what can be printed in reasonable time."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        weigh(value)
    return str(value)


def joined(parts: Iterable[Any], separator: str = "") -> str:
    texts: list[str] = []
    size = 0
    for part in parts:
        text = text_of(part)
        size += len(text) + len(separator)
        if size > OUTPUT_LIMIT:
            raise Limit("a text is too long")
        texts.append(text)
    return separator.join(texts)


def replaced(text: str, old: str, new: str, count: int | None = None) -> str:
    found = text.count(old)
    times = found if count is None or count < 0 else min(found, count)
    if len(text) + times * max(0, len(new) - len(old)) > OUTPUT_LIMIT:
        raise Limit("a text is too long")
    return text.replace(old, new, -1 if count is None else count)


def operated(operator: str, left: Any, right: Any, compute: Callable[[], Any]) -> Any:
    """A binary operation, refused before it begins where it would be huge."""
    if operator == "**":
        if isinstance(left, int) and isinstance(right, int):
            _fits(abs(left).bit_length() * abs(right), INTEGER_BITS_LIMIT)
    elif operator == "*":
        if isinstance(left, int) and isinstance(right, int):
            _fits(left.bit_length() + right.bit_length(), INTEGER_BITS_LIMIT)
        for sized, times in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(sized, str):
                _fits(len(sized) * times, OUTPUT_LIMIT)
            elif isinstance(times, int) and isinstance(sized, list | tuple):
                _fits(weigh(sized) * times, WEIGHT_LIMIT)
    elif operator == "+" and isinstance(left, str) and isinstance(right, str):
        _fits(len(left) + len(right), OUTPUT_LIMIT)
    elif operator == "%" and isinstance(left, str):
        if _WIDE.search(left):
            raise Limit("a format is too wide")
        weigh(right)
    return compute()


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Iterable[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as templates expect it: neither HTML nor ASCII escaped."""
    weigh(value)
    if indent is not None:
        _fits(int(indent), 16)
    item, key = separators or ((", ", ": ") if indent is None else (",", ": "))
    _fits(len(item) + len(key), 64)
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=(item, key),
        sort_keys=sort_keys,
    )


def indented(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    margin = width if isinstance(width, str) else " " * min(int(width), 64)
    _fits(len(text) + len(margin) * (text.count("\n") + 1), OUTPUT_LIMIT)
    lines = text.split("\n")
    body = [margin + line if (line or blank) else line for line in lines[1:]]
    return "\n".join([margin + lines[0] if first else lines[0], *body])


def bounded_range(*bounds: int) -> range:
    found = range(*bounds)
    _fits(len(found), RANGE_LIMIT)
    return found


def dated(strftime: Callable[[str], str], form: str) -> str:
    if not _DATE_FORMAT.fullmatch(form):
        raise Limit("a date format is too long")
    return strftime(form)


def marked(text: str) -> str:
    """`safe` has nothing to do where nothing is escaped."""
    return str(text) if isinstance(text, Markup) else text


def _fits(size: int, limit: int) -> None:
    if size > limit:
        raise Limit("a value is too large")
