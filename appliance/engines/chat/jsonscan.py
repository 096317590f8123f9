"""Where a JSON object ends, found as its text arrives."""

from __future__ import annotations


class ObjectScanner:
    """Counts brackets outside strings. `feed` says how many characters still belong to the
    object."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.is_done = False

    def feed(self, text: str) -> int:
        for index, character in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self.is_done = True
                    return index + 1
        return len(text)
