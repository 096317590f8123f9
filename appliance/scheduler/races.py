"""What several signs together say about who is back first, learnt from races that were seen.

When a model has to give up its place, those resident start a *race*: who is asked for first? If
they come back at rates r₁ … rₙ, as independent memoryless processes would, the first is i with
probability rᵢ / Σr, the next is decided likewise among the rest, and so on (the model of Plackett
and Luce). Let the logarithm of a rate be a weighted sum of logarithms of signs: the agents' next
request, the agents' returns, how often lately, how long ago. Then every request that ends a stage
of a race moves the weights a step up the slope of its likelihood:

    step · (signs of the one that came − mean of the signs of all still out, by probability)

It learns exactly what the choice of a victim needs, the order among residents, from exactly those
choices, and it goes on learning when habits change. Not the errors of predicted times: squared
errors are ruled by the long times of models that nobody wants any more, whose order is plain.

A race says nothing about units, which matter where models differ in size or reload seconds. The
offset turns the sum into uses per second: it follows the error of the logarithm of the time that
each model in a race really took.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, log

SIGNS = ("agent", "return", "lately", "recency")
Signs = tuple[float, float, float, float]
"""Natural logarithms of rates, in the order of `SIGNS`. What they count per is each one's affair:
the weights and the offset take units up."""

_BEGINNING = (0.45, 0.35, 0.1, 0.1)
"""Weights before anything was seen: the agents' rhythms, and a little of what LRU and LFU know."""

_STEP = 0.01
"""A weight moves by at most this at a stage of a race: some hundred races turn a verdict round."""

_RACES = 6
"""Races that are out at a time; a stage is learnt from in each."""

_RUNNERS = 8
"""Participants of a race, those first who stand nearest to losing their place: bounds its cost."""

_OFFSET_LEARNING = 0.02

_SUM_MOST = 60.0
"""Bounds the exponent, so that no rate overflows however the weights stand."""


@dataclass(slots=True, eq=False)
class _Race:
    since_s: float
    out: dict[str, Signs]


class Races:
    """The weights, and the races they are learnt from."""

    def __init__(self) -> None:
        self.weights = _BEGINNING
        self._offset = 0.0
        self._races: deque[_Race] = deque(maxlen=_RACES)

    def rate(self, signs: Signs) -> float:
        """Expected uses per second of a model with these signs."""
        return exp(max(-_SUM_MOST, min(self._sum(signs) + self._offset, _SUM_MOST)))

    def start(self, runners: Mapping[str, Signs], now_s: float) -> None:
        """A place is to be given up by one of these: who of them will be asked for first?"""
        if len(runners) > 1:
            slowest = sorted(runners, key=lambda name: (self._sum(runners[name]), name))
            self._races.append(_Race(now_s, {name: runners[name] for name in slowest[:_RUNNERS]}))

    def came(self, model: str, now_s: float) -> None:
        """A model is asked for: one stage of every race that it is in is decided."""
        for race in self._races:
            signs = race.out.get(model)
            if signs is None:
                continue
            took_s = max(now_s - race.since_s, 1e-3)
            error = -log(took_s) - self._sum(signs) - self._offset
            self._offset += _OFFSET_LEARNING * error
            if len(race.out) > 1:
                self._learn(signs, race.out)
            del race.out[model]

    def forget(self, model: str) -> None:
        for race in self._races:
            race.out.pop(model, None)

    def _learn(self, came: Signs, out: Mapping[str, Signs]) -> None:
        runners = list(out.values())
        sums = [self._sum(signs) for signs in runners]
        most = max(sums)
        total = mean_a = mean_b = mean_c = mean_d = 0.0
        for each, (a, b, c, d) in zip(sums, runners, strict=True):
            odds = exp(each - most)
            total += odds
            mean_a += odds * a
            mean_b += odds * b
            mean_c += odds * c
            mean_d += odds * d
        a, b, c, d = came
        a, b, c, d = a - mean_a / total, b - mean_b / total, c - mean_c / total, d - mean_d / total
        step = _STEP / (1 + max(abs(a), abs(b), abs(c), abs(d)))
        w, x, y, z = self.weights
        self.weights = (w + step * a, x + step * b, y + step * c, z + step * d)

    def _sum(self, signs: Signs) -> float:
        a, b, c, d = self.weights
        return a * signs[0] + b * signs[1] + c * signs[2] + d * signs[3]
