"""Which line of a TOML text each key stands on.

No TOML library of ours keeps line numbers next to values, and an error without its line is half
an error. So this scans a text that already parsed: it needs to recognise only where keys, headers
and values begin and end, and never what a value is. A key it cannot place (inside an inline table
or an array) is answered with the line of the nearest key above it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import TypeAlias

KeyPath: TypeAlias = tuple[str | int, ...]

_KEY_PART = re.compile(r"""[ \t]*(?:"((?:\\.|[^"\\])*)"|'([^']*)'|([A-Za-z0-9_-]+))[ \t]*""")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}' r"|'''[\s\S]*?'{3,5}" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'",
    re.DOTALL,
)


def line_numbers(text: str) -> Mapping[KeyPath, int]:
    """Line (from 1) of every table header and key of a valid TOML text, by its path."""
    lines: dict[KeyPath, int] = {}
    arrays: dict[KeyPath, int] = {}
    table: KeyPath = ()
    at, line = 0, 1
    while at < len(text):
        start = at
        character = text[at]
        if character in " \t\r\n":
            at += 1
        elif character == "#":
            at = _end_of_line(text, at)
        elif character == "[":
            is_array = text.startswith("[[", at)
            parts, at = _dotted_key(text, at + 1 + is_array)
            table = _inside_arrays(parts, arrays, last=not is_array)
            if is_array:
                arrays[table] = arrays.get(table, -1) + 1
                table = (*table, arrays[table])
            lines.setdefault(table, line)
            at = _end_of_line(text, at)
        else:
            parts, at = _dotted_key(text, at)
            for depth in range(1, len(parts) + 1):
                lines.setdefault((*table, *parts[:depth]), line)
            at = _end_of_value(text, at + 1)
        at = max(at, start + 1)
        line += text.count("\n", start, at)
    return lines


def line_of(path: Sequence[str | int], lines: Mapping[KeyPath, int]) -> int:
    """The line of this key, or of the nearest key above it; 1 where there is none."""
    for depth in range(len(path), 0, -1):
        if (found := lines.get(tuple(path[:depth]))) is not None:
            return found
    return 1


def _inside_arrays(parts: KeyPath, arrays: Mapping[KeyPath, int], *, last: bool) -> KeyPath:
    """The path with the index of the current element after each array of tables in it."""
    path: KeyPath = ()
    for number, part in enumerate(parts):
        path = (*path, part)
        if path in arrays and (last or number < len(parts) - 1):
            path = (*path, arrays[path])
    return path


def _dotted_key(text: str, at: int) -> tuple[KeyPath, int]:
    parts: list[str] = []
    while match := _KEY_PART.match(text, at):
        escaped, literal, bare = match.groups()
        parts.append(
            tomllib.loads(f'key = "{escaped}"')["key"] if escaped else literal or bare or ""
        )
        at = match.end()
        if text[at : at + 1] != ".":
            break
        at += 1
    return tuple(parts), at


def _end_of_value(text: str, at: int) -> int:
    """Behind the value that begins at `at`: the end of the line on which its brackets close."""
    depth = 0
    while at < len(text):
        character = text[at]
        if character in "\"'" and (match := _STRING.match(text, at)):
            at = match.end()
            continue
        if character == "#":
            at = _end_of_line(text, at)
            continue
        if character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "\n" and depth <= 0:
            break
        at += 1
    return at


def _end_of_line(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end
