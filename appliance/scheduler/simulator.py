"""The core on virtual time: agents that take turns, engines that take time.

A heap of moments drives the same `Core` as the daemon's. An agent runs one turn after another: each
is a number of steps on one model with a pause (a tool call) after each. Loads and steps take the
seconds they are given; unloading is immediate. `fifo_turns` is the yardstick: the same agents on
one device that serves in arrival order and swaps whenever the next request wants another model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from appliance.scheduler.core import Core
from appliance.scheduler.placing import BestFit
from appliance.scheduler.policy import Policy
from appliance.scheduler.values import (
    ConfigChanged,
    DeviceView,
    Event,
    Grant,
    InstanceGone,
    InstanceReady,
    InventoryChanged,
    LeaseReleased,
    ModelSpec,
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


@dataclass(frozen=True, slots=True)
class Simulated:
    """Turns completed by agent, loads, and the longest wait for a slot in seconds."""

    turns: dict[str, int]
    loads: int
    longest_wait_s: float

    @property
    def total_turns(self) -> int:
        return sum(self.turns.values())


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
        self._loads, self._longest_s = 0, 0.0
        self._at(0.0, InventoryChanged(tuple(devices)))
        self._at(0.0, ConfigChanged(tuple(models)))
        for agent in agents:
            self._ask(agent, 0.0)

    def run(self, end_s: float) -> Simulated:
        while self._moments and self._moments[0][0] <= end_s:
            self._now_s, _, event = heappop(self._moments)
            if isinstance(event, LeaseReleased):
                agent = self._agents[event.lease_id.split("|")[0]]
                self._steps[agent.name] += 1
                self._ask(agent, self._now_s + agent.pause_s)
                event = LeaseReleased(event.lease_id.split("|")[1], 1, event.seconds)
            self._handle(event)
        turns = {name: done // self._agents[name].steps for name, done in self._steps.items()}
        return Simulated(turns, self._loads, self._longest_s)

    def _handle(self, event: Event) -> None:
        for effect in self._core.handle(event, self._now_s):
            match effect:
                case Grant():
                    name = effect.request_id.split("|")[0]
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
                case WakeAt():
                    self._at(effect.time_s, Tick())
                case _:
                    pass

    def _ask(self, agent: Agent, at_s: float) -> None:
        request_id = f"{agent.name}|{self._number}"
        self._at(at_s, StepRequested(request_id, agent.name, (agent.model,)))

    def _at(self, time_s: float, event: Event) -> None:
        self._number += 1
        heappush(self._moments, (time_s, self._number, event))
