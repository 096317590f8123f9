"""Who asks for what after whom: a table of hand-overs, and what it expects now.

Agents work in sequence: one ends its step and the next is asked, or a tool runs and the same one
goes on. So the end of a step opens a *watch* behind its agent, until that agent asks again; the
first request for each model meanwhile, whoever asks, counts one for the pair with the time it took.
The counts, divided by the watches, are the chance that the model is asked for after this agent's
step. Once some of the silence has passed, only the watches and the counts that lasted longer speak.

An agent mostly takes several steps before it hands over. So the chance has two parts: that the
model comes before the agent does, and that it comes after one of the agent's next steps, which is
the same question again and sums up like any geometric series.

Models that are busy anyway show up behind everybody; that is no error, they are indeed asked for
next. One watch in which nothing came is added to each count: one hand-over is no habit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from heapq import nlargest
from itertools import islice
from operator import mul

_WATCHES = 8
"""Agents watched at a time, those that ended a step last: bounds the cost of a request."""

_ASKED = 3
"""Agents considered in a prediction, those at work and those silent for the shortest time."""

_AGENTS = 256
"""Agents whose followers are remembered; the one that ended a step longest ago is forgotten."""

_COUNTED = 64.0
"""Watches at which an agent's counts are halved: what it did lately is what it will do."""

_FOLLOWERS = 5
"""Models considered behind an agent, those that came most often: bounds the cost of a decision."""

_STEP_LEARNING = 0.3
"""Weight of the newest step in the seconds that an agent's step takes."""

_BINS = 22
"""Bin b > 0 holds times from 2^((b-1)/2) to 2^(b/2) seconds. The last one holds all above seventeen
minutes, where nobody hands over any more: it counts as "not at all"."""

_EDGES = [0.0, *(2.0 ** (b / 2) for b in range(_BINS))]
_MIDDLES = [(_EDGES[b] + _EDGES[b + 1]) / 2 for b in range(_BINS - 1)]


@dataclass(frozen=True, slots=True)
class Expected:
    """A model that may be asked for behind an agent: before the agent asks again, or, later, after
    one of its next steps. Each a chance and the mean of the seconds until then, if it comes."""

    model: str
    agent: str
    chance: float
    in_s: float
    later_chance: float
    later_s: float

    @property
    def ways(self) -> tuple[tuple[float, float], tuple[float, float]]:
        return (self.chance, self.in_s), (self.later_chance, self.later_s)

    @property
    def rate(self) -> float:
        """Uses per second, as a forecast counts them."""
        return self.chance / self.in_s + self.later_chance / self.later_s


@dataclass(slots=True, eq=False)
class _Follower:
    """A model behind an agent: how often by bins of time, and of these how often the agent came
    back all the same."""

    times: list[float] = field(default_factory=lambda: [0.0] * _BINS)
    came: float = 0.0
    """The sum of all but the last bin."""
    returned: float = 0.0


@dataclass(slots=True, eq=False)
class _Behind:
    """What was seen behind one agent. `ended`: its watches, by the bin in which it asked again."""

    watches: float = 0.0
    ended: list[float] = field(default_factory=lambda: [0.0] * _BINS)
    followers: dict[str, _Follower] = field(default_factory=dict)
    step_s: float = 0.0

    def close(self, at_bin: int, seen: Collection[str]) -> None:
        """A watch is over, in which these models were asked for."""
        self.watches += 1.0
        self.ended[at_bin] += 1.0
        if at_bin < _BINS - 1:
            for model in seen:
                if model in self.followers:
                    self.followers[model].returned += 1.0
        if self.watches >= _COUNTED:
            self._fade()

    def _fade(self) -> None:
        self.watches /= 2
        self.ended = [n / 2 for n in self.ended]
        for model, follower in list(self.followers.items()):
            follower.times = [n / 2 for n in follower.times]
            follower.returned /= 2
            follower.came /= 2
            if follower.came < 0.5:
                del self.followers[model]


@dataclass(slots=True, eq=False)
class _Watch:
    """An agent is silent since its step ended; `seen`: the models asked for meanwhile."""

    since_s: float
    behind: _Behind
    seen: dict[str, None] = field(default_factory=dict)


class Handovers:
    """The table. Owned by the core's book."""

    def __init__(self) -> None:
        self._behind: dict[str, _Behind] = {}
        self._watches: dict[str, _Watch] = {}
        self._ends_s: dict[str, float] = {}
        """Agents at work, and when their step is expected to end."""

    def begun(self, agent: str, service_s: float, now_s: float) -> None:
        """A step of the agent's begins, which may take so many seconds."""
        behind = self._behind.get(agent)
        if behind is not None:
            self._ends_s[agent] = now_s + (behind.step_s or service_s)

    def ended(self, agent: str, seconds: float, now_s: float) -> None:
        """An agent's step ended after so many seconds: who comes now?"""
        self._ends_s.pop(agent, None)
        self._close(agent, _BINS - 1)
        behind = self._behind.pop(agent, None) or _Behind(step_s=seconds)
        behind.step_s += _STEP_LEARNING * (seconds - behind.step_s)
        self._behind[agent] = behind
        self._watches[agent] = _Watch(now_s, behind)
        if len(self._watches) > _WATCHES:
            self._close(next(iter(self._watches)), _BINS - 1)
        if len(self._behind) > _AGENTS:
            oldest = next(iter(self._behind))
            self._close(oldest, _BINS - 1)
            del self._behind[oldest]
            self._ends_s.pop(oldest, None)

    def broke_off(self, agent: str) -> None:
        """An agent's step came to nothing: it will be asked for again, and nobody behind it."""
        self._ends_s.pop(agent, None)

    def asked(self, agent: str, model: str, now_s: float) -> None:
        """An agent asks for a model."""
        for watch in self._watches.values():
            if model not in watch.seen:
                watch.seen[model] = None
                followers = watch.behind.followers
                follower = followers.get(model)
                if follower is None:
                    follower = followers[model] = _Follower()
                at_bin = _bin(now_s - watch.since_s)
                follower.times[at_bin] += 1.0
                follower.came += at_bin < _BINS - 1
        own = self._watches.get(agent)
        if own is not None:
            self._close(agent, _bin(now_s - own.since_s))

    def expected(self, models: Collection[str], now_s: float) -> Iterator[Expected]:
        """What of these may be asked for next, and behind whom; one may come behind several."""
        for agent, ends_s in islice(reversed(self._ends_s.items()), _ASKED):
            works_s = max(ends_s - now_s, 1.0)
            yield from _behind_one(agent, self._behind[agent], 0.0, works_s, (), models)
        for agent, watch in islice(reversed(self._watches.items()), _ASKED):
            silent_s = now_s - watch.since_s
            yield from _behind_one(agent, watch.behind, silent_s, 0.0, watch.seen, models)

    def forget(self, model: str) -> None:
        """The model left the configuration."""
        for behind in self._behind.values():
            behind.followers.pop(model, None)

    def _close(self, agent: str, at_bin: int) -> None:
        watch = self._watches.pop(agent, None)
        if watch is not None:
            watch.behind.close(at_bin, watch.seen)


def _behind_one(
    agent: str,
    behind: _Behind,
    silent_s: float,
    works_s: float,
    seen: Collection[str],
    models: Collection[str],
) -> Iterator[Expected]:
    """`works_s`: until its step ends; `silent_s`: since it did; `seen`: the models that came."""
    now_bin, all_watches = _bin(silent_s), behind.watches + 1.0
    watches = sum(behind.ended[now_bin:]) + 1.0
    returns, all_returns = sum(behind.ended[now_bin:-1]), sum(behind.ended[:-1])
    gaps_s = sum(map(mul, behind.ended, _MIDDLES))
    round_s = behind.step_s + (gaps_s / all_returns if all_returns else 0.0)
    likely = [
        (follower.came, model) for model, follower in behind.followers.items() if model in models
    ]
    for came, model in nlargest(_FOLLOWERS, likely):
        follower = behind.followers[model]
        times = follower.times
        chance = in_s = 0.0
        if model not in seen:
            left = times[now_bin:-1]
            comes = sum(left)
            chance = min(comes / watches, 1.0)
            if comes:
                in_s = sum(map(mul, left, _MIDDLES[now_bin:])) / comes - silent_s
        again = max(returns - follower.returned, 0.0) / watches
        each = min(max(all_returns - follower.returned, 0.0) / all_watches, 0.99)
        later = again * min(came / all_watches / (1.0 - each), 1.0)
        if chance or later:
            rounds_s = round_s / (1.0 - each)
            yield Expected(
                model, agent, chance, max(in_s, 1.0) + works_s,
                min(later, 1.0 - chance), max(rounds_s, 1.0) + works_s,
            )  # fmt: skip


def _bin(seconds: float) -> int:
    return min(int(seconds * seconds).bit_length(), _BINS - 1)
