"""The date a conversation began, for templates that print today's.

A prompt that says another date is another prompt: at midnight every conversation would lose its KV
cache from the system prompt on. So each keeps the date of its first step for as long as it is
remembered here; only new conversations learn of the new day. Parked conversations outlive the
worker, so their dates lie in a file beside them.
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from datetime import date
from pathlib import Path

log = logging.getLogger(__name__)

CONVERSATIONS_KEPT = 4096
"""More than any machine keeps resident or parked; some 400 KB."""


class BeginningDates:
    """By cache key, the least recently used forgotten. One thread asks; any may `write`."""

    def __init__(self, path: Path | None = None, limit: int = CONVERSATIONS_KEPT) -> None:
        """`path` is where an earlier worker may have left its own; whatever else lies there counts
        for nothing."""
        self._path = path
        self._limit = limit
        self._dates: OrderedDict[str, date] = OrderedDict()
        self._is_written = True
        if path is not None and path.is_file():
            try:
                for key, day in json.loads(path.read_bytes())[-limit:]:
                    self._dates[str(key)] = date.fromisoformat(day)
            except (OSError, ValueError, TypeError) as error:
                log.warning("dates of parked conversations cannot be read: %s", error)

    def of(self, cache_key: str | None, today: date) -> date:
        """When the conversation began; `today` for a new one, or one without a name."""
        if cache_key is None:
            return today
        self._is_written = self._is_written and cache_key in self._dates
        found = self._dates.setdefault(cache_key, today)
        self._dates.move_to_end(cache_key)
        if len(self._dates) > self._limit:
            self._dates.popitem(last=False)
        return found

    def write(self) -> None:
        """Leave them for the next worker. A disk that refuses costs a prefill tomorrow, no more."""
        if self._path is None or self._is_written:
            return
        self._is_written = True
        known = [(key, day.isoformat()) for key, day in list(self._dates.items())]
        part = self._path.with_suffix(".part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            part.write_text(json.dumps(known), encoding="utf-8")
            part.chmod(0o600)
            part.replace(self._path)
        except OSError as error:
            log.warning("dates of parked conversations cannot be written: %s", error)
