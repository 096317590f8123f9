"""From token bytes to text that may be shown: whole characters only, nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from appliance.engines.chat.scan import held_back


class StopScanner:
    """Finds the first stop string in a text that arrives in pieces.

    What could still become a stop string is held back, so nothing of one is ever shown, however
    the pieces are cut.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """Text now safe to show, and the stop string if one is complete (the earliest one)."""
        if not self._stops:
            return text, None
        self._held += text
        found = [(self._held.find(stop), -len(stop), stop) for stop in self._stops]
        found = [entry for entry in found if entry[0] >= 0]
        if found:
            at, _, stop = min(found)
            shown, self._held = self._held[:at], ""
            return shown, stop
        keep = held_back(self._held, self._stops)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, None

    def flush(self) -> str:
        """What was held back, at the end."""
        rest, self._held = self._held, ""
        return rest


class TextStream:
    """Token pieces in, text out, through UTF-8 and the stop strings."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._scanner = StopScanner(stops)

    def feed(self, piece: bytes, *, scans: bool) -> tuple[str, str | None]:
        """As `StopScanner.feed`, for the bytes of one token. Where stop strings do not count
        (reasoning, arguments of a call), `scans` is False and all text passes."""
        text = self._decoder.decode(piece)
        if scans:
            return self._scanner.feed(text)
        return self._scanner.flush() + text, None

    def finish(self) -> tuple[str, str | None]:
        """The held-back rest; a character cut in the middle becomes U+FFFD."""
        shown, stop = self._scanner.feed(self._decoder.decode(b"", final=True))
        return (shown, stop) if stop is not None else (shown + self._scanner.flush(), None)
