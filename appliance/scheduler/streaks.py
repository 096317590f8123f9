"""How many steps an agent takes in a row before it leaves its model or pauses.

A job that asks three times an hour apart is done after the third request; somebody who chats goes
on the likelier the longer it has been going on; others stop at any step. So each agent's streaks
are counted by their length, which tells how likely the streak it is in goes on. An agent that is
new to a length is taken for one like all others.

Not everybody has such a habit, and counts by length are few and noisy. So both are tried at every
step: what the length tells, and what the agent does on average. The chance is a mean of the two, by
how well either foretold the agent's last hundred steps (Bayesian model averaging). The answer is
its odds against those of the average, so that who counts gaps already is told nothing twice.
"""

from __future__ import annotations

from math import exp, log

_LENGTHS = 12
"""Lengths told apart: one to eight steps, then to twice as many, up to over sixty-four."""

_FADE = 0.99
"""What a step counts one step later."""

_BORROWED = 2.0
"""Steps that what is borrowed counts for."""

_NOTHING_TOLD = -4.0
"""Advantage, in natural logarithms of likelihood, at which the length is not asked any more."""


class Streaks:
    """One agent's streaks, or those of everybody."""

    __slots__ = ("_advantage", "_all_ended", "_all_taken", "_ended", "_steps", "_taken")

    def __init__(self) -> None:
        self._taken, self._ended = [0.0] * _LENGTHS, [0.0] * _LENGTHS
        self._all_taken = self._all_ended = 0.0
        self._steps = 1
        self._advantage = 0.0

    def step(self, goes_on: bool, everybody: Streaks) -> None:
        """After the last step the agent went on in its streak, or did not and begins another."""
        on_average, by_length = self._chances(everybody)
        odds = by_length / on_average if goes_on else (1 - by_length) / (1 - on_average)
        self._advantage = _FADE * self._advantage + log(odds)
        length, ended = _length(self._steps), 0.0 if goes_on else 1.0
        everybody._count(length, ended)
        self._count(length, ended)
        self._taken[length] *= _FADE
        self._ended[length] *= _FADE
        self._all_taken *= _FADE
        self._all_ended *= _FADE
        self._steps = self._steps + 1 if goes_on else 1

    def goes_on(self, everybody: Streaks) -> float | None:
        """How many times as likely, in odds, it goes on as on average; None if the length of its
        streaks tells nothing."""
        if self._advantage < _NOTHING_TOLD:
            return None
        on_average, by_length = self._chances(everybody)
        chance = on_average + (by_length - on_average) / (1.0 + exp(-self._advantage))
        return chance / (1.0 - chance) * (1.0 - on_average) / on_average

    def _count(self, length: int, ended: float) -> None:
        self._taken[length] += 1.0
        self._ended[length] += ended
        self._all_taken += 1.0
        self._all_ended += ended

    def _chances(self, everybody: Streaks) -> tuple[float, float]:
        """That it goes on, on average and after as many steps as now. Neither is quite 0 or 1."""
        length = _length(self._steps)
        usual = (everybody._all_ended + 1.0) / (everybody._all_taken + 2.0)
        lent = (everybody._ended[length] + 1.0) / (everybody._taken[length] + 2.0)
        ends = (self._all_ended + _BORROWED * usual) / (self._all_taken + _BORROWED)
        ends_here = (self._ended[length] + _BORROWED * lent) / (self._taken[length] + _BORROWED)
        return 1.0 - ends, 1.0 - ends_here


def _length(steps: int) -> int:
    return steps - 1 if steps <= 8 else min(steps.bit_length() + 4, _LENGTHS - 1)
