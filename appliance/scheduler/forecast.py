"""How soon will each model be wanted again? Several forecasters, and the one that would have saved
the most.

No forecaster is best everywhere. Recency is right when agents work in bursts, frequency when demand
is steady, the agents' own rhythms when it is people and schedules (`rhythm`). Which it is cannot be
known beforehand and changes over the day, so all four are kept and judged by what they would have
cost: each drives a *shadow*, a list of models that would be resident had it alone chosen every
victim, under the same total budget of bytes. A request for a model that is not in the shadow costs
that forecaster the model's reload seconds. The costs fade, the forecaster with the least is
followed, and changing horses needs a lead of one reload, so that near-equals do not alternate.

Shadows are the idea behind ARC's ghost lists and LeCaR's regret (Vietri et al. 2018); whole
shadows cost more than ghosts but judge every expert at every request instead of only the one that
was followed. Nothing is learned beforehand and no constant is fitted: at the first request all are
equal and the sharpest on young agents, recency, leads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from appliance.scheduler.rhythm import Rhythms

_FADE = 0.999
"""What a cost counts one request later: a verdict over about the last thousand requests."""

_FREQUENCY_FADE = 0.5 ** (1 / 4096)
"""A use counts half after so many requests: frequency with ageing."""

_GRAIN = 0.05
"""Of a resident's stay, the part below which two return times count as equal."""

_LOADS_LEARNING = 0.05
"""Weight of the newest gap between two loads."""

_STALE = 0.05
"""Of the expected time until the next use, the part for which a forecast need not be made anew."""

_NEVER_S = 1e9


@dataclass(slots=True, eq=False)
class _Expert:
    """A forecaster, its shadow (model → bytes) and the faded reload seconds it would have cost."""

    name: str
    rate: Callable[[str, float], float]
    shadow: dict[str, int] = field(default_factory=dict)
    shadow_bytes: int = 0
    cost_s: float = 0.0
    known: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Rates by model and when they were computed; dropped when the model is asked for."""

    def expected(self, model: str, now_s: float) -> float:
        """`rate`, or what it was a moment ago, a moment being short against the expected wait."""
        rate, at_s = self.known.get(model, (0.0, -_NEVER_S))
        if (now_s - at_s) * rate >= _STALE or rate == 0.0:
            rate = self.rate(model, now_s)
            self.known[model] = (rate, now_s)
        return rate


class Forecast:
    """Learns from requests as they arrive; answers how soon a model is expected again."""

    def __init__(self) -> None:
        self._last_s: dict[str, float] = {}
        self._uses: dict[str, float] = {}
        self._use_weight = 1.0
        self._rhythms = Rhythms()
        self._reload_s: dict[str, float] = {}
        self._experts = (
            _Expert("recency", self._recency),
            _Expert("agent", self._rhythms.agent_rate),
            _Expert("return", self._rhythms.return_rate),
            _Expert("frequency", self._frequency),
        )
        self._best = self._experts[0]
        self._loaded_s: float | None = None
        self._load_gap_s: float | None = None

    @property
    def followed(self) -> str:
        """The forecaster that is followed now."""
        return self._best.name

    def observe(
        self, agent: str, model: str, now_s: float, size: int, reload_s: float, budget: int
    ) -> None:
        """An agent asks for a model of `size` bytes, where `budget` bytes hold all residents."""
        self._reload_s[model] = reload_s
        self._use_weight /= _FREQUENCY_FADE
        self._uses[model] = self._uses.get(model, 0.0) + self._use_weight
        self._rhythms.observe(agent, model, now_s)
        self._last_s[model] = now_s
        for expert in self._experts:
            expert.known.pop(model, None)
            expert.cost_s *= _FADE
            if model not in expert.shadow:
                expert.cost_s += reload_s
                self._admit(expert, model, size, budget, now_s)
        if self._use_weight > 1e100:
            self._uses = {name: uses / self._use_weight for name, uses in self._uses.items()}
            self._use_weight = 1.0
            self._experts[-1].known.clear()
        best = min(self._experts, key=lambda expert: expert.cost_s)
        if best.cost_s + reload_s < self._best.cost_s:
            self._best = best

    def loaded(self, now_s: float, resident: int) -> None:
        """A model was loaded and `resident` models are: the scale on which returns differ."""
        if self._loaded_s is not None:
            gap_s, known = now_s - self._loaded_s, self._load_gap_s
            mixed = gap_s if known is None else known + _LOADS_LEARNING * (gap_s - known)
            self._load_gap_s = mixed
            self._rhythms.grain_s = _GRAIN * resident * mixed
        self._loaded_s = now_s

    def next_use_s(self, model: str, now_s: float) -> float:
        """Seconds from now until the model is expected to be asked for again."""
        if model not in self._last_s:
            return _NEVER_S
        rate = self._best.expected(model, now_s)
        return 1 / rate if rate > 1 / _NEVER_S else _NEVER_S

    def forget(self, model: str) -> None:
        """The model left the configuration."""
        self._last_s.pop(model, None)
        self._uses.pop(model, None)
        self._rhythms.forget(model)
        for expert in self._experts:
            expert.shadow_bytes -= expert.shadow.pop(model, 0)
            expert.known.pop(model, None)

    def _admit(self, expert: _Expert, model: str, size: int, budget: int, now_s: float) -> None:
        """Lets the expert's shadow load a model, in place of what the expert values least."""
        shadow = expert.shadow
        while shadow and expert.shadow_bytes + size > budget:
            worth = {
                name: expert.expected(name, now_s) * self._reload_s[name] / held
                for name, held in shadow.items()
            }
            victim = min(shadow, key=lambda name: (worth[name], self._last_s[name], name))
            expert.shadow_bytes -= shadow.pop(victim)
        shadow[model] = max(size, 1)
        expert.shadow_bytes += shadow[model]

    def _recency(self, model: str, now_s: float) -> float:
        return 1 / max(now_s - self._last_s[model], 1e-6)

    def _frequency(self, model: str, now_s: float) -> float:
        return self._uses[model] / self._use_weight
