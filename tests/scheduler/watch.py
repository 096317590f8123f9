"""Signs that a scheduler is busy without getting anywhere.

Nothing runs out of memory where nothing is loaded, or where the same model is loaded and unloaded
for ever. So the ordeal also counts loads that nobody used, starts of one model in a row, and how
long somebody waited for a load whose bytes were free.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass

SOON_S = 10.0


@dataclass
class Signs:
    """Counts over one run."""

    served: int = 0
    waited_s: float = 0.0
    """By all that were served."""
    longest_wait_s: float = 0.0
    starved_s: float = 0.0
    """The longest that a model was waited for and not loaded though one card had its bytes free,
    beside the reserve, all the time."""
    barren: int = 0
    """Workers that were told to stop before they had served anybody."""
    most_starts: int = 0
    """Of one model within `SOON_S`."""


class Watch:
    """Sees what a run does, and keeps its signs."""

    def __init__(self, signs: Signs) -> None:
        self._signs = signs
        self._starts: dict[str, deque[float]] = defaultdict(deque)
        self._unused: set[str] = set()
        self._starved_since_s: dict[str, float] = {}

    def started(self, model: str, instance_id: str, now_s: float) -> None:
        self._unused.add(instance_id)
        starts = self._starts[model]
        starts.append(now_s)
        while starts[0] < now_s - SOON_S:
            starts.popleft()
        self._signs.most_starts = max(self._signs.most_starts, len(starts))

    def stopped(self, instance_id: str) -> None:
        self._signs.barren += instance_id in self._unused
        self._unused.discard(instance_id)

    def served(self, instance_id: str, waited_s: float) -> None:
        self._unused.discard(instance_id)
        self._signs.served += 1
        self._signs.waited_s += waited_s
        self._signs.longest_wait_s = max(self._signs.longest_wait_s, waited_s)

    def starving(self, models: Iterable[str], now_s: float) -> None:
        """These are waited for, are not being loaded, and would fit: again and again, or anew."""
        since_s = {model: self._starved_since_s.get(model, now_s) for model in models}
        for at_s in since_s.values():
            self._signs.starved_s = max(self._signs.starved_s, now_s - at_s)
        self._starved_since_s = since_s
