"""A histogram of gaps between events, which tells how soon the next one is, given a silence.

Gaps are counted in half octaves: seconds between steps and weeks between visits in the same few
dozen numbers. Each histogram is kept with its suffix sums, rebuilt when it changed and is asked, so
that a query reads a handful of numbers; and may be filled up from an older one while it is young.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import floor, log2
from operator import truediv

BINS = 56
"""Bin b > 0 holds gaps from 2^((b-5)/2) to 2^((b-4)/2) seconds: a quarter second to a year."""

_UNSEEN = 0.1
"""Observations "it never comes back" in every histogram: lets silence end any expectation."""

_STARTS: list[float] = [0.0, *(2.0 ** ((b - 5) / 2) for b in range(1, BINS))]
_EXACT = 4
"""Bins after the silence for which the time left is computed; beyond, a gap is four times as long
and the silence no longer matters to it."""

_WIDTHS: list[float] = [2.0 ** ((b - 4) / 2) - start for b, start in enumerate(_STARTS)]
_MIDDLES = [start + width / 2 for start, width in zip(_STARTS, _WIDTHS, strict=True)]


def bin_of(gap_s: float) -> int:
    """The bin of a gap in seconds."""
    if gap_s < 0.25:
        return 0
    return min(floor(2 * log2(gap_s)) + 5, BINS - 1)


@dataclass(frozen=True, slots=True)
class Grain:
    """Times closer together than this are as good as equal: what matters is the order in which
    models come back on the scale of a stay, not which of two is back in a blink."""

    seconds: float
    middles: list[float]
    """Of the bins, each with the grain on top."""


def grain(seconds: float) -> Grain:
    return Grain(seconds, [middle + seconds for middle in _MIDDLES])


@dataclass(frozen=True, slots=True)
class Lent:
    """What a histogram is filled up from: another one, counting for so many observations."""

    lender: Gaps
    observations: float
    grain: Grain
    top: int
    """The bins from here on are empty in both."""
    unit: float = 1.0
    """What one observation of now counts."""


class Gaps:
    """A histogram of gaps with suffix sums. `count` observations, in the unit of their owner.

    The sums are worked out when a rate is asked for, not when a gap is added: as long as everything
    fits into memory nobody asks.
    """

    __slots__ = (
        "_lent",
        "_rate_after",
        "_weights",
        "_weights_after",
        "bins",
        "count",
        "grain_s",
        "top",
    )

    def __init__(self) -> None:
        self.bins = [0.0] * BINS
        self.count = 0.0
        self.top = 0
        """The bins from here on are empty."""
        self.grain_s = 0.0
        self._lent: Lent | None = None
        self._weights: list[float] = []
        self._weights_after = self._rate_after = self._weights

    def add(self, gap_bin: int, weight: float = 1.0) -> None:
        self.bins[gap_bin] += weight
        self.count += weight
        if gap_bin >= self.top:
            self.top = gap_bin + 1

    def scale(self, by: float) -> None:
        """Changes the unit in which observations are counted."""
        self.bins = [weight * by for weight in self.bins]
        self.count *= by

    def lend(self, lent: Lent) -> None:
        """Something was added: the sums are out of date, and this is what fills them up."""
        self._lent = lent

    def _rebuild(self, lent: Lent) -> None:
        borrowed, grain, top = lent.lender, lent.grain, lent.top
        weights = self.bins[:top]
        if borrowed.count > 0:
            share = lent.observations / borrowed.count
            weights = [w + b * share for w, b in zip(weights, borrowed.bins[:top], strict=True)]
        backwards = weights[::-1]
        after = list(accumulate(backwards, initial=_UNSEEN * lent.unit))
        middles = reversed(grain.middles[:top])
        rates = list(accumulate(map(truediv, backwards, middles), initial=0.0))
        after.reverse()
        rates.reverse()
        self._weights, self._weights_after, self._rate_after = weights, after, rates
        self.grain_s, self._lent = grain.seconds, None

    def rate(self, silent_s: float) -> float:
        """Expected events per second after this silence: the mean of one over the time left.

        In the bin the silence has reached, gaps are taken as evenly spread.
        """
        if self._lent is not None:
            self._rebuild(self._lent)
        b, weights = bin_of(silent_s), self._weights
        if b >= len(weights):
            return 0.0
        left_s = max(_STARTS[b] + _WIDTHS[b] - silent_s, 0.05 * _WIDTHS[b])
        fraction, grain_s = left_s / _WIDTHS[b], self.grain_s
        far = min(b + 1 + _EXACT, len(weights))
        every = weights[b] * fraction / (left_s / 2 + grain_s) + self._rate_after[far]
        for near in range(b + 1, far):
            every += weights[near] / (_MIDDLES[near] - silent_s + grain_s)
        left = weights[b] * fraction + self._weights_after[b + 1]
        return every / left

    def joint_rates(self, part: Gaps, silent_s: float) -> tuple[float, float]:
        """`rate` of this histogram, and of those of its gaps that `part` holds as well."""
        if self._lent is not None:
            self._rebuild(self._lent)
        if part._lent is not None:
            part._rebuild(part._lent)
        b, weights, inner = bin_of(silent_s), self._weights, part._weights
        if b >= len(weights):
            return 0.0, 0.0
        left_s = max(_STARTS[b] + _WIDTHS[b] - silent_s, 0.05 * _WIDTHS[b])
        fraction, grain_s = left_s / _WIDTHS[b], self.grain_s
        soon = fraction / (left_s / 2 + grain_s)
        far = min(b + 1 + _EXACT, len(weights))
        every = weights[b] * soon + self._rate_after[far]
        inside = inner[b] * soon + part._rate_after[far]
        for near in range(b + 1, far):
            per_s = 1 / (_MIDDLES[near] - silent_s + grain_s)
            every += weights[near] * per_s
            inside += inner[near] * per_s
        all_left = weights[b] * fraction + self._weights_after[b + 1]
        return every / all_left, min(inside, every) / all_left

    def first_rates(self, part: Gaps) -> tuple[float, float]:
        """`joint_rates` of a silence that begins now; known once others were asked for."""
        every, inside = self._rate_after[0], part._rate_after[0]
        return every / self._weights_after[0], min(inside, every) / self._weights_after[0]
