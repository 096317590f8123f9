"""How soon will each model be wanted again? Three forecasters, and the one that would have saved
the most.

Recency is right when agents work in bursts, frequency when demand is steady and nobody's in
particular, and what is known of each agent, weighed against both, in nearly everything else: that
is the forecaster called *agents*, whose signs are the agents' rhythms (`rhythm`) and whose weights
are learnt as it goes (`races`). Two simple rules stand beside it, because learning can go astray
and neither LRU nor LFU should ever have been much better.

Which is best cannot be known beforehand and changes over the day, so all are kept and judged by
what they would have cost: each drives a *shadow*, a list of models that would be resident had it
alone chosen every victim, under the same total budget of bytes. A request for a model that is not
in the shadow costs that forecaster the model's reload seconds. The costs fade, the forecaster with
the least is followed, and changing horses needs a lead of one reload, so that near-equals do not
alternate.

Shadows are the idea behind ARC's ghost lists and LeCaR's regret (Vietri et al. 2018); whole
shadows cost more than ghosts but judge every expert at every request instead of only the one that
was followed. Nothing is learned beforehand and no constant is fitted to a trace.

Learning from a request takes longer than most decisions do, and nothing depends on it until the
next choice. So what is seen is only noted, and learnt in the same order when there is time
(`learn_next`) or, at the latest, when somebody asks: when it is learnt changes no answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from heapq import heapify, heappop
from math import log

from appliance.scheduler.races import Races, Signs
from appliance.scheduler.rhythm import SAME_SILENCE, Rhythms

_FADE = 0.999
"""What a cost counts one request later: a verdict over about the last thousand requests."""

_AGEING = 4096
"""Requests after which a use counts half: frequency with ageing."""

_LATELY = 64
"""The same, for the sign "often lately": a shift of demand shows after some dozens of requests."""

_LOADS_LEARNING = 0.05
"""Weight of the newest gap between two loads."""

_STALE = 0.1
"""Of the expected time until the next use, the part for which a forecast need not be made anew."""

_READINGS = 4
"""Models whose signs are read anew for one choice among many, the most overdue first: bounds the
cost of a decision. The others' signs are good for one more choice."""

_UNLEARNT = 64
"""Events that may wait to be learnt; of more, one is learnt at each that comes, so that a daemon
that is never idle neither forgets nor hoards."""

_NEVER_S = 1e9
_HARDLY = 1e-9
"""Uses per second that are as good as none."""


class Frequency:
    """Each model's share of the requests, where an old one counts less."""

    def __init__(self, half_life: int) -> None:
        self._growth = 2.0 ** (1 / half_life)
        self._newest = self._total = 1.0
        self._uses: dict[str, float] = {}

    def add(self, model: str) -> None:
        """A request for the model. Weights of new ones grow, which spares fading all the others."""
        self._newest *= self._growth
        self._total += self._newest
        self._uses[model] = self._uses.get(model, 0.0) + self._newest
        if self._newest > 1e100:
            self._uses = {name: uses / self._newest for name, uses in self._uses.items()}
            self._total /= self._newest
            self._newest = 1.0

    def share(self, model: str) -> float:
        return self._uses.get(model, 0.0) / self._total

    def forget(self, model: str) -> None:
        self._uses.pop(model, None)


@dataclass(slots=True, eq=False)
class _Expert:
    """A forecaster, its shadow (model → bytes) and the faded reload seconds it would have cost."""

    name: str
    rate: Callable[[str, float], float]
    shadow: dict[str, int] = field(default_factory=dict)
    shadow_bytes: int = 0
    cost_s: float = 0.0


@dataclass(slots=True, eq=False)
class _Reading:
    """The signs of a model, when they were read, for how long that does, and until when it has to
    do, which is later if there was no time to read them again."""

    signs: Signs
    read_s: float
    fresh_s: float
    until_s: float


@dataclass(frozen=True, slots=True)
class _Request:
    """An agent asks for a model of `size` bytes, where `budget` bytes hold all residents."""

    agent: str
    model: str
    at_s: float
    size: int
    reload_s: float
    budget: int


@dataclass(frozen=True, slots=True)
class _Load:
    """A model was loaded and `resident` models are."""

    at_s: float
    resident: int


class Forecast:
    """Learns from requests as they arrive; answers how soon a model is expected again."""

    def __init__(self) -> None:
        self._unlearnt: deque[_Request | _Load] = deque()
        self._last_s: dict[str, float] = {}
        self._last_number: dict[str, int] = {}
        self._number = 0
        self._frequency = Frequency(_AGEING)
        self._lately = Frequency(_LATELY)
        self._rhythms = Rhythms()
        self._races = Races()
        self._reload_s: dict[str, float] = {}
        self._known: dict[str, _Reading] = {}
        self._experts = (
            _Expert("agents", self._agents_rate),
            _Expert("recency", self._recency_rate),
            _Expert("frequency", self._frequency_rate),
        )
        self._best = self._experts[0]
        self._loaded_s: float | None = None
        self._load_gap_s: float | None = None

    # ── what is told ────────────────────────────────────────────────────────────────────────────

    def observe(
        self, agent: str, model: str, now_s: float, size: int, reload_s: float, budget: int
    ) -> None:
        """An agent asks for a model of `size` bytes, where `budget` bytes hold all residents."""
        self._note(_Request(agent, model, now_s, size, reload_s, budget))

    def loaded(self, now_s: float, resident: int) -> None:
        """A model was loaded and `resident` models are: the scale on which returns differ."""
        self._note(_Load(now_s, resident))

    def learn_next(self) -> bool:
        """Learns from the oldest of what was told; False if all is learnt."""
        if not self._unlearnt:
            return False
        seen = self._unlearnt.popleft()
        if isinstance(seen, _Request):
            self._learn_request(seen)
        else:
            self._learn_load(seen)
        return True

    def forget(self, model: str) -> None:
        """The model left the configuration."""
        self._catch_up()
        self._last_s.pop(model, None)
        self._last_number.pop(model, None)
        self._frequency.forget(model)
        self._lately.forget(model)
        self._rhythms.forget(model)
        self._races.forget(model)
        self._known.pop(model, None)
        for expert in self._experts:
            expert.shadow_bytes -= expert.shadow.pop(model, 0)

    # ── what is asked ───────────────────────────────────────────────────────────────────────────

    @property
    def followed(self) -> str:
        """The forecaster that is followed now."""
        self._catch_up()
        return self._best.name

    def next_use_s(self, model: str, now_s: float) -> float:
        """Seconds from now until the model is expected to be asked for again."""
        self._catch_up()
        if model not in self._last_s:
            return _NEVER_S
        rate = self._best.rate(model, now_s)
        return 1 / rate if rate > _HARDLY else _NEVER_S

    def prepare(self, models: Collection[str], now_s: float) -> None:
        """There is a choice among these: what is known of them is brought up to date."""
        self._catch_up()
        self._refresh(models, now_s)

    # ── learning ────────────────────────────────────────────────────────────────────────────────

    def _note(self, seen: _Request | _Load) -> None:
        self._unlearnt.append(seen)
        if len(self._unlearnt) > _UNLEARNT:
            self.learn_next()

    def _catch_up(self) -> None:
        while self._unlearnt:
            self.learn_next()

    def _learn_load(self, seen: _Load) -> None:
        if self._loaded_s is not None:
            gap_s, known = seen.at_s - self._loaded_s, self._load_gap_s
            mixed = gap_s if known is None else known + _LOADS_LEARNING * (gap_s - known)
            self._load_gap_s = mixed
            self._rhythms.set_stay(seen.resident * mixed)
        self._loaded_s = seen.at_s

    def _learn_request(self, seen: _Request) -> None:
        model, now_s = seen.model, seen.at_s
        self._number += 1
        self._reload_s[model] = seen.reload_s
        self._frequency.add(model)
        self._lately.add(model)
        self._races.came(model, now_s)
        self._rhythms.observe(seen.agent, model, now_s)
        self._last_s[model], self._last_number[model] = now_s, self._number
        self._known.pop(model, None)
        for expert in self._experts:
            expert.cost_s *= _FADE
            if model not in expert.shadow:
                expert.cost_s += seen.reload_s
                self._admit(expert, model, seen.size, seen.budget, now_s)
        best = min(self._experts, key=lambda expert: expert.cost_s)
        if best.cost_s + seen.reload_s < self._best.cost_s:
            self._best = best

    def _refresh(self, models: Collection[str], now_s: float) -> None:
        """Of those whose signs are out of date, the few most overdue are read anew when asked."""
        overdue = []
        for model in models:
            known = self._known.get(model)
            if known is not None and not known.read_s <= now_s <= known.until_s:
                overdue.append(((now_s - known.read_s) / known.fresh_s, model))
        if len(overdue) > _READINGS:
            overdue.sort(reverse=True)
            for _, model in overdue[_READINGS:]:
                self._known[model].until_s = now_s

    def _admit(self, expert: _Expert, model: str, size: int, budget: int, now_s: float) -> None:
        """Lets the expert's shadow load a model, in place of what the expert values least."""
        shadow = expert.shadow
        if shadow and expert.shadow_bytes + size > budget:
            if expert is self._experts[0]:
                self._refresh(shadow, now_s)
                self._races.start({name: self._signs(name, now_s) for name in shadow}, now_s)
            rate, reload_s, last_s = expert.rate, self._reload_s, self._last_s
            by_worth = [
                (rate(name, now_s) * reload_s[name] / held, last_s[name], name)
                for name, held in shadow.items()
            ]
            heapify(by_worth)
            while by_worth and expert.shadow_bytes + size > budget:
                expert.shadow_bytes -= shadow.pop(heappop(by_worth)[2])
        shadow[model] = max(size, 1)
        expert.shadow_bytes += shadow[model]

    # ── the forecasters ─────────────────────────────────────────────────────────────────────────

    def _recency_rate(self, model: str, now_s: float) -> float:
        return 1 / max(now_s - self._last_s[model], 1e-6)

    def _frequency_rate(self, model: str, now_s: float) -> float:
        return self._frequency.share(model)

    def _agents_rate(self, model: str, now_s: float) -> float:
        return self._races.rate(self._signs(model, now_s))

    def _signs(self, model: str, now_s: float) -> Signs:
        """What is known of a model, or was a moment ago, short against the expected wait."""
        known = self._known.get(model)
        if known is not None and known.read_s <= now_s <= known.until_s:
            return known.signs
        return self._read(model, now_s).signs

    def _read(self, model: str, now_s: float) -> _Reading:
        agent_rate, return_rate = self._rhythms.rates(model, now_s)
        signs = (
            log(agent_rate + _HARDLY),
            log(return_rate + _HARDLY),
            log(self._lately.share(model) + 1e-4),
            -log(self._number - self._last_number[model] + 1),
        )
        silent_s = now_s - self._last_s[model]
        fresh_s = max(_STALE / max(agent_rate, return_rate, _HARDLY), SAME_SILENCE * silent_s)
        reading = self._known[model] = _Reading(signs, now_s, fresh_s, now_s + fresh_s)
        return reading
