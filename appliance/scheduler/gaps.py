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

_GRAIN = 0.05
"""Of a stay, the part below which two times count as equal."""

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
    stay_bin: int
    """The last bin of gaps that are no longer than a stay."""


def grain(stay_s: float) -> Grain:
    """What differs where a model stays in memory for so long."""
    seconds = _GRAIN * stay_s
    return Grain(seconds, [middle + seconds for middle in _MIDDLES], bin_of(stay_s))


@dataclass(frozen=True, slots=True)
class Lent:
    """What a histogram is filled up from: another one, counting for so many observations."""

    lender: Gaps
    among: Gaps
    """Whose gaps are counted: the lender, or that of which the lender holds a part."""
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
        "stay_bin",
        "top",
    )

    def __init__(self) -> None:
        self.bins = [0.0] * BINS
        self.count = 0.0
        self.top = 0
        """The bins from here on are empty."""
        self.grain_s, self.stay_bin = 0.0, 0
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
        if lent.among.count > 0:
            share = lent.observations / lent.among.count
            weights = [w + b * share for w, b in zip(weights, borrowed.bins[:top], strict=True)]
        backwards = weights[::-1]
        after = list(accumulate(backwards, initial=_UNSEEN * lent.unit))
        middles = reversed(grain.middles[:top])
        rates = list(accumulate(map(truediv, backwards, middles), initial=0.0))
        after.reverse()
        rates.reverse()
        self._weights, self._weights_after, self._rate_after = weights, after, rates
        self.grain_s, self.stay_bin, self._lent = grain.seconds, grain.stay_bin, None

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

    def joint_rates(
        self, part: Gaps, silent_s: float, likelier: float | None = None
    ) -> tuple[float, float]:
        """`rate` of this histogram, and of those of its gaps that `part` holds as well.

        `likelier`: how many times as likely, in odds, as usually the next gap is one of `part` and
        no longer than a stay, if more is known of it than the histograms tell.
        """
        if self._lent is not None:
            self._rebuild(self._lent)
        if part._lent is not None:
            part._rebuild(part._lent)
        b, weights, inner = bin_of(silent_s), self._weights, part._weights
        top, beyond = len(weights), self.stay_bin + 1
        if b >= top:
            return 0.0, 0.0
        left_s = max(_STARTS[b] + _WIDTHS[b] - silent_s, 0.05 * _WIDTHS[b])
        fraction, grain_s = left_s / _WIDTHS[b], self.grain_s
        soon = fraction / (left_s / 2 + grain_s)
        far = min(b + 1 + _EXACT, top)
        every = weights[b] * soon + self._rate_after[far]
        inside = inner[b] * soon + part._rate_after[far]
        late = part._rate_after[min(max(far, beyond), top)]
        for near in range(b + 1, far):
            per_s = 1 / (_MIDDLES[near] - silent_s + grain_s)
            every += weights[near] * per_s
            inside += inner[near] * per_s
            if near >= beyond:
                late += inner[near] * per_s
        left = weights[b] * fraction + self._weights_after[b + 1]
        if likelier is not None and b < beyond:
            late_left = part._weights_after[min(beyond, top)]
            share = (part._weights_after[0] - late_left) / self._weights_after[0]
            others = 1 / (1 - share + share * likelier)
            more = (likelier - 1) * others
            every, inside = (rate * others + more * (inside - late) for rate in (every, inside))
            left *= others
            left += more * (inner[b] * fraction + part._weights_after[b + 1] - late_left)
        return every / left, min(inside, every) / left

    def first_rates(self, part: Gaps) -> tuple[float, float]:
        """`joint_rates` of a silence that begins now; known once others were asked for."""
        every, inside = self._rate_after[0], part._rate_after[0]
        return every / self._weights_after[0], min(inside, every) / self._weights_after[0]
