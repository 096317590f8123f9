"""Each agent's own rhythm: how soon it asks again, and whether for the model it used last.

Two estimators, both renewal processes over histograms of gaps in half octaves, both answering
with a *rate*: expected uses of a model per second, now.

The first looks at the agent. Its requests come in turns: seconds between steps, minutes or hours
between turns. Given how long it has been silent, the histogram says how soon it will speak, and a
second one, of the gaps after which it stayed with its model, says for which model. If for another,
the one asked about may be next after that, or still later: a gap like any of the agent's, and the
same question again, which sums up to a closed form. This is sharp for the next minute. How many
steps the agent takes in a row (`streaks`) may tell more of the next gap than the histogram does.

The second looks at the pair of agent and model: after what time does this agent come back to this
model? That is duller at once and right about the long run: the agent that is at lunch.

A young histogram borrows from an older one: a pair's from its agent's, an agent's from everybody's,
each with the weight of a couple of observations. Querying must be cheap, as a decision asks for
every loaded model and every agent that lately used it: the histograms (`gaps`) see to that.
"""

from __future__ import annotations

from itertools import islice
from typing import TypeAlias

from appliance.scheduler.gaps import BINS, Gaps, Lent, bin_of, grain
from appliance.scheduler.streaks import Streaks

_AGENTS_ASKED = 5
_RETURNS_ASKED = 4
"""Agents considered per model, those first who used it last: bounds the cost of a forecast. An
agent's own rates are worked out once for all models, a return for each."""

SAME_SILENCE = 0.15
"""The part by which a silence may grow until what it tells is worked out anew: a third of the step
from one bin to the next."""

_BORROWED = 2.0
"""Observations that a borrowed histogram counts for: one and two are noise, ten are not."""

_HABIT = 8.0
"""Moves that an agent's habits count for: who has a choice of twenty models shows where it goes
from each of them only after hundreds of moves."""

_MEMORY = 300.0
"""Requests after which an agent's old gap counts half: habits change in days, not in minutes."""

_GROWTH = 2.0 ** (1 / _MEMORY)
_UNIT_MOST = 1e100
"""A new gap counts so much more than the one before it, which spares fading all the others."""

_Outlook: TypeAlias = tuple[float, float, float, float, float]
"""An agent's requests per second; of these the ones for the model it used last; after any of them
the worth of leaving for a model, per use of that; one less the worth of any request; the grain."""


class _Agent:
    """What is known of one agent."""

    __slots__ = (
        "gaps",
        "known",
        "known_from_s",
        "known_until_s",
        "last_model",
        "last_s",
        "moves",
        "moves_total",
        "returns",
        "stays",
        "streaks",
        "unit",
        "uses",
        "uses_total",
    )

    def __init__(self) -> None:
        self.gaps, self.stays, self.returns = Gaps(), Gaps(), Gaps()
        self.streaks = Streaks()
        self.last_model, self.last_s = "", 0.0
        self.moves: dict[str, dict[str, float]] = {}
        self.moves_total: dict[str, float] = {}
        self.unit = 1.0
        self.uses: dict[str, float] = {}
        self.uses_total = 0.0
        self.known: _Outlook = (0.0, 0.0, 0.0, 1.0, 0.0)
        self.known_from_s, self.known_until_s = 0.0, -1.0

    def outlook(self, now_s: float, everybody: Streaks) -> _Outlook:
        """What is to be expected of it."""
        if not self.known_from_s <= now_s <= self.known_until_s:
            gaps, silent_s = self.gaps, now_s - self.last_s
            goes_on = self.streaks.goes_on(everybody)
            every, stay = gaps.joint_rates(self.stays, silent_s, goes_on)
            later, later_stay = gaps.first_rates(self.stays)
            grain_s = gaps.grain_s
            leaving = grain_s * (later - later_stay) / (self.uses_total + 1.0)
            self.known = (every, stay, leaving, 1.0 - grain_s * later, grain_s)
            self.known_from_s, self.known_until_s = now_s, now_s + SAME_SILENCE * silent_s
        return self.known


class _Pair:
    """What is known of an agent's returns to a model."""

    __slots__ = ("agent", "gaps", "last_s", "rate_from_s", "rate_then", "rate_until_s")

    def __init__(self, agent: _Agent) -> None:
        self.agent, self.gaps = agent, Gaps()
        self.last_s = self.rate_then = self.rate_from_s = 0.0
        self.rate_until_s = -1.0

    def rate(self, now_s: float) -> float:
        """Returns per second."""
        if not self.rate_from_s <= now_s <= self.rate_until_s:
            silent_s = now_s - self.last_s
            self.rate_then = self.gaps.rate(silent_s)
            self.rate_from_s, self.rate_until_s = now_s, now_s + SAME_SILENCE * silent_s
        return self.rate_then


class Rhythms:
    """Both estimators over all agents."""

    def __init__(self) -> None:
        self._agents: dict[str, _Agent] = {}
        self._everybody = _Agent()
        self._grain = grain(0.0)
        self._stay_bin = BINS
        self._pairs: dict[str, dict[str, _Pair]] = {}

    def set_stay(self, seconds: float) -> None:
        """How long a model stays in memory: the scale on which returns differ."""
        self._grain = grain(seconds)
        self._stay_bin = self._grain.stay_bin

    def observe(self, agent: str, model: str, now_s: float) -> None:
        """An agent asked for a model."""
        known = self._agents.get(agent)
        if known is None:
            known = self._agents[agent] = _Agent()
        else:
            self._observe_gap(known, model, now_s)
        known.uses[model] = known.uses.get(model, 0.0) + 1.0
        known.uses_total += 1.0
        known.last_model, known.last_s = model, now_s
        known.known_until_s = -1.0
        everybody, unit = self._everybody, known.unit
        lent, top = _BORROWED * unit, max(everybody.gaps.top, known.gaps.top)
        known.gaps.lend(Lent(everybody.gaps, everybody.gaps, lent, self._grain, top, unit))
        known.stays.lend(Lent(everybody.stays, everybody.gaps, lent, self._grain, top, unit))
        self._observe_return(agent, known, model, now_s)

    def rates(self, model: str, now_s: float) -> tuple[float, float]:
        """Uses of the model per second by what its agents will ask for, and by the return of agents
        that used it before."""
        by_agents = by_returns = 0.0
        users = reversed(self._pairs.get(model, {}).values())
        for asked, pair in enumerate(islice(users, _AGENTS_ASKED)):
            outlook = pair.agent.outlook(now_s, self._everybody.streaks)
            by_agents += _rate_of_uses(pair.agent, outlook, model)
            if asked < _RETURNS_ASKED:
                by_returns += pair.rate(now_s)
        return by_agents, by_returns

    def forget(self, model: str) -> None:
        """The model is gone from the configuration."""
        self._pairs.pop(model, None)

    def _observe_gap(self, agent: _Agent, model: str, now_s: float) -> None:
        gap_bin = bin_of(now_s - agent.last_s)
        agent.unit *= _GROWTH
        if agent.unit > _UNIT_MOST:
            agent.gaps.scale(1 / agent.unit)
            agent.stays.scale(1 / agent.unit)
            agent.unit = 1.0
        agent.gaps.add(gap_bin, agent.unit)
        self._everybody.gaps.add(gap_bin)
        stays = model == agent.last_model
        agent.streaks.step(stays and gap_bin <= self._stay_bin, self._everybody.streaks)
        if stays:
            agent.stays.add(gap_bin, agent.unit)
            self._everybody.stays.add(gap_bin)
        else:
            moves = agent.moves.setdefault(agent.last_model, {})
            moves[model] = moves.get(model, 0.0) + 1.0
            total = agent.moves_total.get(agent.last_model, 0.0)
            agent.moves_total[agent.last_model] = total + 1.0

    def _observe_return(self, name: str, agent: _Agent, model: str, now_s: float) -> None:
        users = self._pairs.setdefault(model, {})
        pair = users.pop(name, None)
        if pair is None:
            pair = _Pair(agent)
        elif agent.uses[model] > 1:
            gap_bin = bin_of(now_s - pair.last_s)
            pair.gaps.add(gap_bin)
            agent.returns.add(gap_bin)
            self._everybody.returns.add(gap_bin)
        users[name] = pair
        pair.last_s, pair.rate_until_s = now_s, -1.0
        lender = agent.returns if agent.returns.count >= _BORROWED else self._everybody.returns
        top = max(lender.top, pair.gaps.top)
        pair.gaps.lend(Lent(lender, lender, 1.0, self._grain, top))


def _rate_of_uses(agent: _Agent, outlook: _Outlook, model: str) -> float:
    """Uses of the model per second by this agent: by its next request or by a later one.

    An event at a rate r is worth g·r, where times are told apart by a grain g: one if it is due
    now, less the later it is; and the second of two in a row is worth the product. So let n be the
    worth of a next request for the model, o that of one for another, and a and b the same right
    after any such. The use is worth n + o·(a + b·(a + b·…)) = n + o·a / (1 - b), which is turned
    back into a rate. All are below one, as every histogram has "never" in it.
    """
    every, stay, leaving, missed, grain_s = outlook
    rate = stay if agent.last_model == model else (every - stay) * _share_of_moves(agent, model)
    comes = leaving * agent.uses[model]
    rate += (every - rate) * comes / (missed + comes)
    return rate / (1.0 - grain_s * rate)


def _share_of_moves(agent: _Agent, model: str) -> float:
    """How likely this agent, leaving its model, goes to that one: its moves, then its habits."""
    moves = agent.moves.get(agent.last_model, {})
    others = agent.uses_total - agent.uses.get(agent.last_model, 0.0)
    habit = agent.uses.get(model, 0.0) / others if others > 0 else 0.0
    total = agent.moves_total.get(agent.last_model, 0.0)
    return (moves.get(model, 0.0) + _HABIT * habit) / (total + _HABIT)
