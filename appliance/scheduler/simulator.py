"""The core on virtual time: agents that take turns, engines that take time.

A heap of moments drives the same `Core` as the daemon's. An agent runs one turn after another: each
is a number of steps on one model with a pause (a tool call) after each. Loads and steps take the
seconds they are given; unloading is immediate. `fifo_turns` is the yardstick: the same agents on
one device that serves in arrival order and swaps whenever the next request wants another model.

`expect` is for a recorded trace instead: steps arrive when they arrived, models have their real
sizes, and a load takes its bytes divided by a bandwidth.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from appliance.scheduler.core import Core
from appliance.scheduler.placing import BestFit
from appliance.scheduler.policy import Policy
from appliance.scheduler.replay import TraceRow
from appliance.scheduler.together import parts
from appliance.scheduler.values import (
    DEFAULT_WEIGHT,
    ConfigChanged,
    DeviceView,
    Effect,
    Event,
    Grant,
    Holdings,
    InstanceGone,
    InstanceReady,
    InventoryChanged,
    LeaseReleased,
    ModelSpec,
    Placer,
    Record,
    Refuse,
    Shared,
    ShareOut,
    StartInstance,
    StepRequested,
    StopInstance,
    Tick,
    WakeAt,
)


@dataclass(frozen=True, slots=True)
class Agent:
    """Runs turns of `steps` steps on `model`; each step takes `step_s`, then `pause_s` of tools."""

    name: str
    model: str
    steps: int = 6
    step_s: float = 5.0
    pause_s: float = 1.0
    weight: float = DEFAULT_WEIGHT


@dataclass(frozen=True, slots=True)
class Simulated:
    """Turns completed by agent, loads, the longest wait for a slot in seconds, and the most that
    any step was overtaken. `waits_s`: of the steps that waited for more than a second what the core
    had predicted, and how long it was."""

    turns: dict[str, int]
    loads: int
    longest_wait_s: float
    most_overtaken: int = 0
    waits_s: tuple[tuple[float, float], ...] = ()

    @property
    def total_turns(self) -> int:
        return sum(self.turns.values())


@dataclass(frozen=True, slots=True)
class Expected:
    """What a trace would meet: of each model the seconds its served steps wait for their slot, in
    order of grants, its loads, and how often it was evicted for another; refusals by reason."""

    waits_s: Mapping[str, Sequence[float]]
    loads: Counter[str]
    evictions: Counter[str]
    refused: Mapping[str, int]


def simulate(
    agents: Sequence[Agent],
    models: Sequence[ModelSpec],
    devices: Sequence[DeviceView],
    hours: float,
    policy: Policy | None = None,
) -> Simulated:
    """Runs the agents against the core for so many hours of virtual time."""
    return _Simulation(agents, models, devices, policy).run(hours * 3600)


def fifo_turns(agents: Sequence[Agent], load_s: float, hours: float) -> Simulated:
    """First come, first served on a device that holds one model and runs one step at a time."""
    end_s, now_s = hours * 3600, 0.0
    arrivals = [(0.0, index) for index in range(len(agents))]
    done = [0] * len(agents)
    resident, loads, longest_s = "", 0, 0.0
    while arrivals[0][0] < end_s:
        at_s, index = heappop(arrivals)
        agent = agents[index]
        now_s = max(now_s, at_s)
        if agent.model != resident:
            resident, loads, now_s = agent.model, loads + 1, now_s + load_s
        longest_s = max(longest_s, now_s - at_s)
        now_s += agent.step_s
        done[index] += now_s <= end_s
        heappush(arrivals, (now_s + agent.pause_s, index))
    turns = {a.name: n // a.steps for a, n in zip(agents, done, strict=True)}
    return Simulated(turns, loads, longest_s)


def expect(
    trace: Sequence[TraceRow],
    models: Sequence[ModelSpec],
    devices: Sequence[DeviceView],
    make_placer: Callable[[Callable[[], Holdings]], Placer],
    bytes_per_s: float,
) -> Expected:
    """Replays arrivals against the core; `make_placer` is given what the core's models hold."""
    return _Arrivals(trace, models, devices, make_placer, bytes_per_s).run()


class _Arrivals:
    """The heap of moments of a trace: steps arrive, loads and steps end."""

    def __init__(
        self,
        trace: Sequence[TraceRow],
        models: Sequence[ModelSpec],
        devices: Sequence[DeviceView],
        make_placer: Callable[[Callable[[], Holdings]], Placer],
        bytes_per_s: float,
    ) -> None:
        self._trace, self._bytes_per_s = trace, bytes_per_s
        self._now_s = start_s = trace[0].time_s if trace else 0.0
        self._core = Core(make_placer(lambda: self._core.holdings()))
        self._moments: list[tuple[float, int, Event]] = []
        self._number = 0
        self._waits_s: defaultdict[str, list[float]] = defaultdict(list)
        self._loads, self._evictions = Counter[str](), Counter[str]()
        self._refused = Counter[str]()
        self._wake_s = start_s
        self._at(start_s, InventoryChanged(tuple(devices)))
        self._at(start_s, ConfigChanged(tuple(models)))
        for index, row in enumerate(trace):
            self._at(row.time_s, StepRequested(str(index), row.agent, (row.model,)))

    def run(self) -> Expected:
        answered = 0
        while self._moments and answered < len(self._trace):
            self._now_s, _, event = heappop(self._moments)
            if isinstance(event, Tick) and self._now_s != self._wake_s:
                continue  # replaced by a later wish
            for effect in self._core.handle(event, self._now_s):
                answered += isinstance(effect, Grant | Refuse)
                self._perform(effect)
        return Expected(self._waits_s, self._loads, self._evictions, self._refused)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Grant():
                step_s = self._trace[int(effect.request_id)].duration_s
                self._waits_s[effect.model].append(effect.queue_s)
                self._at(self._now_s + step_s, LeaseReleased(effect.lease_id, 0, step_s))
            case Refuse():
                self._refused[effect.reason] += 1
            case StartInstance():
                load_s = effect.fit.total_bytes / self._bytes_per_s
                self._loads[effect.spec.name] += effect.spec.needs_memory
                ready = InstanceReady(effect.instance_id, load_s, effect.fit.slots)
                self._at(self._now_s + load_s, ready)
            case StopInstance():
                self._at(self._now_s, InstanceGone(effect.instance_id))
            case Record():
                self._evictions[effect.subject] += effect.kind == "evict"
            case ShareOut():
                self._at(self._now_s, Shared(effect.number, parts(effect.models, effect.capacity)))
            case WakeAt():
                self._wake_s = effect.time_s
                self._at(effect.time_s, Tick())
            case _:
                pass

    def _at(self, time_s: float, event: Event) -> None:
        self._number += 1
        heappush(self._moments, (time_s, self._number, event))


class _Simulation:
    """The heap of moments and what is to happen then."""

    def __init__(
        self,
        agents: Sequence[Agent],
        models: Sequence[ModelSpec],
        devices: Sequence[DeviceView],
        policy: Policy | None,
    ) -> None:
        self._agents = {agent.name: agent for agent in agents}
        self._core = Core(BestFit(), policy)
        self._moments: list[tuple[float, int, Event]] = []
        self._number = 0
        self._now_s = 0.0
        self._steps = dict.fromkeys(self._agents, 0)
        self._loads, self._longest_s, self._most_overtaken = 0, 0.0, 0
        self._predicted_s: dict[str, float] = {}
        self._waits_s: list[tuple[float, float]] = []
        self._wake_s = 0.0
        self._at(0.0, InventoryChanged(tuple(devices)))
        self._at(0.0, ConfigChanged(tuple(models)))
        for agent in agents:
            self._ask(agent, 0.0)

    def run(self, end_s: float) -> Simulated:
        while self._moments and self._moments[0][0] <= end_s:
            self._now_s, _, event = heappop(self._moments)
            if isinstance(event, Tick) and self._now_s != self._wake_s:
                continue  # replaced by a later wish
            if isinstance(event, LeaseReleased):
                agent = self._agents[event.lease_id.split("|")[0]]
                self._steps[agent.name] += 1
                self._ask(agent, self._now_s + agent.pause_s)
                event = LeaseReleased(event.lease_id.split("|")[1], 1, event.seconds)
            self._handle(event)
        turns = {name: done // self._agents[name].steps for name, done in self._steps.items()}
        waits = tuple(self._waits_s)
        return Simulated(turns, self._loads, self._longest_s, self._most_overtaken, waits)

    def _handle(self, event: Event) -> None:
        if isinstance(event, StepRequested):
            now = self._core.capacity(self._now_s).models[event.models[0]]
            self._predicted_s[event.request_id] = now.predicted_wait_s
        for effect in self._core.handle(event, self._now_s):
            match effect:
                case Grant():
                    name = effect.request_id.split("|")[0]
                    predicted_s = self._predicted_s.pop(effect.request_id)
                    if effect.queue_s > 1.0:
                        self._waits_s.append((predicted_s, effect.queue_s))
                    step_s = self._agents[name].step_s
                    self._longest_s = max(self._longest_s, effect.queue_s)
                    lease = f"{name}|{effect.lease_id}"
                    self._at(self._now_s + step_s, LeaseReleased(lease, 1, step_s))
                case StartInstance():
                    self._loads += 1
                    load_s, slots = effect.spec.load_s, effect.fit.slots
                    ready = InstanceReady(effect.instance_id, load_s, slots)
                    self._at(self._now_s + load_s, ready)
                case StopInstance():
                    self._at(self._now_s, InstanceGone(effect.instance_id))
                case Record(kind="grant", numbers={"overtaken": int(overtaken)}):
                    self._most_overtaken = max(self._most_overtaken, overtaken)
                case WakeAt():
                    self._wake_s = effect.time_s
                    self._at(effect.time_s, Tick())
                case _:
                    pass

    def _ask(self, agent: Agent, at_s: float) -> None:
        request_id = f"{agent.name}|{self._number}"
        step = StepRequested(request_id, agent.name, (agent.model,), weight=agent.weight)
        self._at(at_s, step)

    def _at(self, time_s: float, event: Event) -> None:
        self._number += 1
        heappush(self._moments, (time_s, self._number, event))
