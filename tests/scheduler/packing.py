"""What two cards could hold at best at one instant.

The most bytes of the configured models that fit beside the other program's true use and the
reserve, with true sizes, loads and moves in no time, among all choices that hold the models which
work or load at that instant. No schedule that serves the same steps at the same moments ever holds
more, and none holds as much: it would have to move models between cards at every instant, for free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


class Packing:
    """The most bytes of some models that two cards can hold: every assignment is tried (3^n)."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        codes = np.arange(3 ** len(sizes))
        self._on = [np.zeros(len(codes), dtype=np.int64) for _ in range(2)]
        self._has: dict[str, np.ndarray[tuple[int], np.dtype[np.bool_]]] = {}
        for name, size in sizes.items():
            codes, home = np.divmod(codes, 3)
            self._has[name] = home > 0
            for card, on in enumerate(self._on):
                on += np.where(home == card + 1, size, 0)
        self._total = self._on[0] + self._on[1]

    def most(self, held: frozenset[str], rooms: Sequence[int]) -> int:
        """Among the assignments that hold these models; if none fits, what they take is not known
        to be possible, and the most without them is the bound."""
        fits = (self._on[0] <= rooms[0]) & (self._on[1] <= rooms[1])
        bound = fits
        for name in held & self._has.keys():
            bound = bound & self._has[name]
        return int(self._total[bound if bound.any() else fits].max(initial=0))
