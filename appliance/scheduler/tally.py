"""What preloads saved and cost, against what was expected of them: how far to believe the next.

A preload saves, at the first request for its model, the part of the load that is over by then. It
costs the reload of those that made way, if they are asked for first. Both are known afterwards,
however wrong a forecast was, and whatever pattern deceives it deceives it again. So expected and
real seconds are summed up side by side, and their quotients correct the next expectation. The sums
start at a few seconds each and fade with every request, so that a bad day is not held against it
for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_FADE = 0.9997
"""What a second counts one request later."""

_PRIOR_S = 60.0
"""Seconds that were as expected, to begin with: half a dozen loads say little."""


@dataclass(slots=True, eq=False)
class _Ahead:
    """A preload nobody has asked for yet."""

    began_s: float
    load_s: float
    victims: frozenset[str]


class Tally:
    """The sums. Owned by the core's book."""

    def __init__(self) -> None:
        self._saved_s = self._to_save_s = 0.0
        self._lost_s = self._to_lose_s = 0.0
        self._ahead: dict[str, _Ahead] = {}

    @property
    def saves(self) -> float:
        """Real seconds saved by expected ones, at most one."""
        return min((self._saved_s + _PRIOR_S) / (self._to_save_s + _PRIOR_S), 1.0)

    @property
    def costs(self) -> float:
        """Real seconds lost by expected ones, at least one."""
        return max((self._lost_s + _PRIOR_S) / (self._to_lose_s + _PRIOR_S), 1.0)

    def began(
        self,
        model: str,
        load_s: float,
        victims: Iterable[str],
        to_save_s: float,
        to_lose_s: float,
        now_s: float,
    ) -> None:
        """A model is loaded ahead in place of these; what was expected is before correction."""
        earlier = self._ahead.get(model)
        gone = frozenset(victims) | (earlier.victims if earlier else frozenset())
        self._ahead[model] = _Ahead(now_s, load_s, gone)
        self._to_save_s += to_save_s
        self._to_lose_s += to_lose_s

    def asked(self, model: str, reload_s: float, now_s: float, *, is_absent: bool) -> None:
        """Somebody asks for a model; one that is absent takes so long to load."""
        self._saved_s *= _FADE
        self._to_save_s *= _FADE
        self._lost_s *= _FADE
        self._to_lose_s *= _FADE
        ahead = self._ahead.pop(model, None)
        if ahead is not None and not is_absent:
            self._saved_s += min(now_s - ahead.began_s, ahead.load_s)
        if is_absent and any(model in other.victims for other in self._ahead.values()):
            self._lost_s += reload_s
            for other in self._ahead.values():
                other.victims -= {model}
