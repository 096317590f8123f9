"""Teams at work on virtual time: who asks next depends on who has just finished.

A *job* is a run of steps, each of which begins when the one before has ended and a pause has
passed: a pipeline that hands over, a lead who delegates, two who take turns. Waiting for a load
delays everything behind it, as it does on a real machine. A row of a recorded trace is a job of one
step. The core is the product's own; loads take their seconds, an unloading is done at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import TypeAlias

from appliance.scheduler.core import Core
from appliance.scheduler.placing import BestFit
from appliance.scheduler.policy import Policy
from appliance.scheduler.replay import TraceRow
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
    Record,
    Refuse,
    StartInstance,
    StepRequested,
    StopInstance,
    Tick,
    WakeAt,
)

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a job: `pause_s` after the end of the step before it."""

    pause_s: float
    agent: str
    model: str
    step_s: float


Job: TypeAlias = Iterator[Step]


@dataclass(slots=True)
class Played:
    """What the steps met. `load_waits_s`: of each step's wait the part in which its model was being
    loaded; `waits_s`: all of it."""

    waits_s: list[float] = field(default_factory=list)
    load_waits_s: list[float] = field(default_factory=list)
    loads: int = 0
    preloads: int = 0
    """Of the loads those that nobody had asked for yet."""
    wasted: int = 0
    """Of the preloads those that were gone before anybody asked."""
    ended_s: float = 0.0

    def mean_s(self) -> float:
        return sum(self.waits_s) / max(len(self.waits_s), 1)

    def quantile_s(self, share: float) -> float:
        ordered = sorted(self.waits_s)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def of_trace(rows: Iterable[TraceRow]) -> list[Job]:
    """Each row a job of its own: arrivals that wait for nobody."""
    return [iter([Step(row.time_s, row.agent, row.model, row.duration_s)]) for row in rows]


def play(
    jobs: Sequence[Job],
    models: Iterable[str],
    places: int,
    steps: int,
    policy: Policy | None = None,
    load_s: float = 10.0,
    slots: int = 2,
) -> Played:
    """Runs the jobs on one device that holds so many models of one size, until so many steps were
    granted or all jobs have ended."""
    return _Play(jobs, models, places, policy, load_s, slots).run(steps)


class _Play:
    def __init__(
        self,
        jobs: Sequence[Job],
        models: Iterable[str],
        places: int,
        policy: Policy | None,
        load_s: float,
        slots: int,
    ) -> None:
        self._core, self._load_s = Core(BestFit(), policy), load_s
        self._jobs = jobs
        self._now_s = self._wake_s = 0.0
        self._moments: list[tuple[float, int, Event]] = []
        self._numbers = count()
        self._steps: dict[str, tuple[int, Step]] = {}
        self._job_of: dict[str, int] = {}
        self._unasked: set[str] = set()
        self._played = Played()
        self._at(0.0, InventoryChanged((DeviceView("gpu", places * GIB),)))
        specs = [ModelSpec(m, slots, demand=GIB, load_s=load_s) for m in sorted(set(models))]
        self._at(0.0, ConfigChanged(tuple(specs)))
        for number in range(len(jobs)):
            self._go_on(number)

    def run(self, steps: int) -> Played:
        while self._moments and len(self._played.waits_s) < steps:
            self._now_s, _, event = heappop(self._moments)
            if isinstance(event, Tick) and self._now_s != self._wake_s:
                continue  # replaced by a later wish
            if isinstance(event, LeaseReleased):
                self._go_on(self._job_of.pop(event.lease_id))
            for effect in self._core.handle(event, self._now_s):
                self._perform(effect)
        self._played.wasted += len(self._unasked)
        self._played.ended_s = self._now_s
        return self._played

    def _go_on(self, number: int) -> None:
        step = next(self._jobs[number], None)
        if step is not None:
            request_id = f"r{next(self._numbers)}"
            self._steps[request_id] = number, step
            request = StepRequested(request_id, step.agent, (step.model,))
            self._at(self._now_s + step.pause_s, request)

    def _perform(self, effect: object) -> None:
        match effect:
            case Grant():
                number, step = self._steps.pop(effect.request_id)
                self._job_of[effect.lease_id] = number
                self._unasked.discard(effect.instance_id)
                self._played.waits_s.append(effect.queue_s)
                self._played.load_waits_s.append(effect.load_s)
                released = LeaseReleased(effect.lease_id, 1, step.step_s)
                self._at(self._now_s + step.step_s, released)
            case Refuse():
                self._go_on(self._steps.pop(effect.request_id)[0])
            case StartInstance():
                self._played.loads += 1
                ready = InstanceReady(effect.instance_id, self._load_s, effect.fit.slots)
                self._at(self._now_s + self._load_s, ready)
            case Record(kind="load", numbers={"guess": True, "instance": str(instance_id)}):
                self._played.preloads += 1
                self._unasked.add(instance_id)
            case StopInstance():
                if effect.instance_id in self._unasked:
                    self._unasked.discard(effect.instance_id)
                    self._played.wasted += 1
                self._at(self._now_s, InstanceGone(effect.instance_id))
            case WakeAt():
                self._wake_s = effect.time_s
                self._at(effect.time_s, Tick())
            case _:
                pass

    def _at(self, time_s: float, event: Event) -> None:
        heappush(self._moments, (time_s, next(self._numbers), event))


# ── teams ───────────────────────────────────────────────────────────────────────────────────────


def team(kind: str, seed: int) -> tuple[list[Job], set[str]]:
    """The jobs of a kind of team, and the models they use."""
    return TEAMS[kind](random.Random(f"{kind} {seed}"))


def _steps(
    rng: random.Random, agent: str, model: str, pause_s: float, mean: float
) -> Iterator[Step]:
    """Some steps in a row with tool calls between them; the first comes after `pause_s`."""
    for _ in range(1 + int(rng.expovariate(1 / mean))):
        yield Step(pause_s, agent, model, rng.lognormvariate(1.6, 0.6))
        pause_s = rng.lognormvariate(0.8, 0.8)


def _department(rng: random.Random) -> tuple[list[Job], set[str]]:
    """A lead plans, two build, one tests; what fails goes back. A pause before the next task. Two
    people chat beside it."""
    models = {"cto": "large", "backend": "coder", "frontend": "coder-small", "qa": "tester"}

    def work(rng: random.Random) -> Job:
        while True:
            pause_s = rng.expovariate(1 / 120)
            yield from _steps(rng, "cto", models["cto"], pause_s, 2)
            while True:
                who = "backend" if rng.random() < 0.7 else "frontend"
                yield from _steps(rng, who, models[who], 1.0, 5)
                yield from _steps(rng, "qa", models["qa"], 1.0, 3)
                if rng.random() < 0.6:
                    break
            yield from _steps(rng, "cto", models["cto"], 1.0, 1)

    def person(rng: random.Random, name: str, model: str) -> Job:
        while True:
            yield from _steps(rng, name, model, rng.expovariate(1 / 600), 4)

    jobs = [work(random.Random(rng.random()))]
    jobs += [person(random.Random(rng.random()), f"u{n}", f"chat{n}") for n in range(2)]
    return jobs, {*models.values(), "chat0", "chat1"}


def _delegation(rng: random.Random) -> tuple[list[Job], set[str]]:
    """Two leads ask specialists, one at a time and mostly their favourites, and go on with the
    answer."""

    def lead(rng: random.Random, name: str, own: str) -> Job:
        liking = [rng.random() ** 2 + 0.05 for _ in range(5)]
        while True:
            pause_s = rng.expovariate(1 / 90)
            for _ in range(1 + int(rng.expovariate(1 / 3))):
                yield from _steps(rng, name, own, pause_s, 1)
                pick = rng.choices(range(5), liking)[0]
                yield from _steps(rng, f"s{pick}", f"special{pick}", 0.5, 3)
                pause_s = 0.5
            yield from _steps(rng, name, own, 0.5, 1)

    jobs = [lead(random.Random(rng.random()), f"lead{n}", f"lead{n}") for n in range(2)]
    return jobs, {"lead0", "lead1", *(f"special{n}" for n in range(5))}


def _pipelines(rng: random.Random) -> tuple[list[Job], set[str]]:
    """Three pipelines of three to five stages over ten models, each after its own pause."""

    def pipeline(rng: random.Random, n: int) -> Job:
        stages = [(f"p{n}s{k}", f"m{rng.randrange(10)}") for k in range(rng.randint(3, 5))]
        away_s = rng.uniform(60, 600)
        while True:
            pause_s = rng.expovariate(1 / away_s)
            for agent, model in stages:
                yield from _steps(rng, agent, model, pause_s, 3)
                pause_s = rng.uniform(0.5, 4)

    jobs = [pipeline(random.Random(rng.random()), n) for n in range(3)]
    return jobs, {f"m{n}" for n in range(10)}


def _review(rng: random.Random) -> tuple[list[Job], set[str]]:
    """Two pairs of a writer and a reviewer go back and forth until it is good; a monitor looks at
    the logs every ten minutes."""

    def pair(rng: random.Random, n: int) -> Job:
        while True:
            pause_s = rng.expovariate(1 / 200)
            for _ in range(1 + int(rng.expovariate(1 / 4))):
                yield from _steps(rng, f"writer{n}", f"writer{n}", pause_s, 4)
                yield from _steps(rng, f"reviewer{n}", f"reviewer{n}", 1.0, 1)
                pause_s = 1.0

    def monitor(rng: random.Random) -> Job:
        while True:
            yield from _steps(rng, "monitor", "small", rng.uniform(590, 610), 1)

    jobs = [pair(random.Random(rng.random()), n) for n in range(2)]
    jobs.append(monitor(random.Random(rng.random())))
    return jobs, {"writer0", "writer1", "reviewer0", "reviewer1", "small"}


def _graph(rng: random.Random) -> tuple[list[Job], set[str]]:
    """Three tasks wander over eight agents, from each to few others by chances of its own."""
    onward = [[rng.random() ** 4 for _ in range(8)] for _ in range(8)]

    def task(rng: random.Random) -> Job:
        at = rng.randrange(8)
        while True:
            pause_s = 1.0 if rng.random() < 0.9 else rng.expovariate(1 / 300)
            yield from _steps(rng, f"a{at}", f"m{at}", pause_s, 3)
            at = rng.choices(range(8), onward[at])[0]

    return [task(random.Random(rng.random())) for _ in range(3)], {f"m{n}" for n in range(8)}


TEAMS: dict[str, Callable[[random.Random], tuple[list[Job], set[str]]]] = {
    "department": _department,
    "delegation": _delegation,
    "pipelines": _pipelines,
    "review": _review,
    "graph": _graph,
}
