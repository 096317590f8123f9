"""The date a conversation began, for templates that print today's.

A prompt that says another date is another prompt: at midnight every conversation would lose its KV
cache from the system prompt on. So each keeps the date of its first step for as long as it is
remembered here; only new conversations learn of the new day.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import date

CONVERSATIONS_KEPT = 4096
"""More than any machine keeps resident or parked; some 400 KB."""


class BeginningDates:
    """By cache key, the least recently used forgotten. One thread's."""

    def __init__(self, limit: int = CONVERSATIONS_KEPT) -> None:
        self._limit = limit
        self._dates: OrderedDict[str, date] = OrderedDict()

    def of(self, cache_key: str | None, today: date) -> date:
        """When the conversation began; `today` for a new one, or one without a name."""
        if cache_key is None:
            return today
        found = self._dates.setdefault(cache_key, today)
        self._dates.move_to_end(cache_key)
        if len(self._dates) > self._limit:
            self._dates.popitem(last=False)
        return found
