"""Families of request traces, each with a structure of its own, drawn by a seed.

They stand for what a workstation may see: agents at work in sessions, pipelines that hand over,
people who chat, jobs on a schedule, demand that shifts, and what is hard for simple rules (loops
and scans larger than the cache). None has numbers from a recorded trace. Development used seed 1;
the figures in docs/BENCHMARKS.md are of other seeds.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeAlias

from appliance.scheduler.replay import TraceRow

_STEP_S = 3.0
"""Each request's service; in arrival order it changes nothing."""

_Rows: TypeAlias = Iterator[TraceRow]


def make(family: str, seed: int, rows: int) -> list[TraceRow]:
    """The first rows of a family's trace."""
    return list(islice(FAMILIES[family](seed), rows))


def _row(time_s: float, agent: str, model: int) -> TraceRow:
    return TraceRow(time_s, agent, f"m{model:02}", _STEP_S)


def _spread(rng: random.Random, median: float, sigma: float) -> float:
    return median * math.exp(rng.gauss(0, sigma))


def _about(rng: random.Random, mean: float) -> int:
    return 1 + int(rng.expovariate(1 / mean))


def _zipf(models: int, exponent: float) -> list[float]:
    return [1 / (n + 1) ** exponent for n in range(models)]


def _together(agents: list[_Rows]) -> _Rows:
    return heapq.merge(*agents, key=lambda row: row.time_s)


def _one_model_each(seed: int) -> _Rows:
    """24 agents, each on one of 20 models: steps, thinking, hours away."""

    def agent(n: int) -> _Rows:
        rng = random.Random(f"one{seed}/{n}")
        model = rng.choices(range(20), _zipf(20, 0.9))[0]
        think_s, gap_s = _spread(rng, 300, 1.0), _spread(rng, 15, 0.5)
        away_s, steps = _spread(rng, 6000, 0.7), rng.choice([3, 6, 10, 20])
        at_s = rng.random() * away_s
        while True:
            for _ in range(_about(rng, 5)):
                for _ in range(_about(rng, steps)):
                    yield _row(at_s, f"a{n}", model)
                    at_s += _spread(rng, gap_s, 0.7)
                at_s += _spread(rng, think_s, 0.8)
            at_s += _spread(rng, away_s, 0.8)

    return _together([agent(n) for n in range(24)])


def _several_models_each(seed: int) -> _Rows:
    """16 agents that choose among one to four models at each turn, and sometimes within one."""

    def agent(n: int) -> _Rows:
        rng = random.Random(f"several{seed}/{n}")
        own = rng.sample(range(20), rng.randint(1, 4))
        liking = [rng.random() ** 2 + 0.05 for _ in own]
        think_s, gap_s, away_s = (_spread(rng, m, s) for m, s in ((240, 1), (10, 0.5), (5000, 0.7)))
        at_s = rng.random() * away_s
        while True:
            for _ in range(_about(rng, 5)):
                model = rng.choices(own, liking)[0]
                for _ in range(_about(rng, 6)):
                    yield _row(at_s, f"a{n}", model)
                    at_s += _spread(rng, gap_s, 0.7)
                    if rng.random() < 0.08:
                        model = rng.choice(own)
                at_s += _spread(rng, think_s, 0.8)
            at_s += _spread(rng, away_s, 0.8)

    return _together([agent(n) for n in range(16)])


def _hand_overs(seed: int) -> _Rows:
    """Six pipelines of three to five roles; work goes on to the next role, or back one."""

    def pipeline(n: int) -> _Rows:
        rng = random.Random(f"hand{seed}/{n}")
        roles = [(f"p{n}r{k}", rng.randrange(14)) for k in range(rng.randint(3, 5))]
        away_s, gap_s = _spread(rng, 2500, 0.6), _spread(rng, 12, 0.4)
        at_s = rng.random() * 2000
        while True:
            k = 0
            while k < len(roles):
                for _ in range(_about(rng, 4)):
                    yield _row(at_s, *roles[k])
                    at_s += _spread(rng, gap_s, 0.6)
                k += -1 if k > 0 and rng.random() < 0.25 else 1
                at_s += _spread(rng, gap_s * 2, 0.5)
            at_s += _spread(rng, away_s, 0.7)

    return _together([pipeline(n) for n in range(6)])


def _chat(seed: int) -> _Rows:
    """200 people with a favourite model each, and conversations of some messages."""

    def person(n: int) -> _Rows:
        rng = random.Random(f"chat{seed}/{n}")
        favourite = rng.choices(range(16), _zipf(16, 1.0))[0]
        away_s = _spread(rng, 20_000, 1.2)
        at_s = rng.random() * away_s
        while True:
            other = rng.random() >= 0.8
            model = rng.choices(range(16), _zipf(16, 1.0))[0] if other else favourite
            for _ in range(_about(rng, 5)):
                yield _row(at_s, f"u{n}", model)
                at_s += _spread(rng, 60, 1.0)
            at_s += _spread(rng, away_s, 1.0)

    return _together([person(n) for n in range(200)])


def _schedule(seed: int) -> _Rows:
    """14 jobs on a clock and five people."""

    def job(n: int) -> _Rows:
        rng = random.Random(f"job{seed}/{n}")
        every_s, model = rng.choice([300, 600, 900, 1800, 3600]), rng.randrange(20)
        due_s, steps = rng.random() * every_s, rng.randint(1, 6)
        while True:
            at_s = due_s
            for _ in range(steps):
                yield _row(at_s, f"j{n}", model)
                at_s += rng.uniform(5, 15)
            due_s = max(due_s + every_s + rng.uniform(-10, 10), at_s)

    def person(n: int) -> _Rows:
        rng = random.Random(f"person{seed}/{n}")
        model, at_s = rng.randrange(20), rng.random() * 3000
        while True:
            for _ in range(_about(rng, 30)):
                yield _row(at_s, f"a{n}", model)
                at_s += _spread(rng, 40, 1.2)
            at_s += _spread(rng, 5000, 0.8)

    return _together([job(n) for n in range(14)] + [person(n) for n in range(5)])


def _steady(seed: int) -> _Rows:
    """Every request draws one of 20 models by Zipf, whoever asks."""
    rng, at_s = random.Random(f"steady{seed}"), 0.0
    while True:
        at_s += rng.expovariate(0.2)
        yield _row(at_s, f"a{rng.randrange(8)}", rng.choices(range(20), _zipf(20, 1.0))[0])


def _own_taste(seed: int) -> _Rows:
    """12 agents, at work or not, each with a taste of its own in 20 models; half the time it stays
    with its model."""

    def agent(n: int) -> _Rows:
        rng = random.Random(f"taste{seed}/{n}")
        taste = rng.sample(range(20), 20)
        gap_s, model, at_s = _spread(rng, 30, 1.0), taste[0], 0.0
        while True:
            for _ in range(_about(rng, 40)):
                if rng.random() > 0.5:
                    model = rng.choices(taste, _zipf(20, 1.4))[0]
                yield _row(at_s, f"a{n}", model)
                at_s += rng.expovariate(1 / gap_s)
            at_s += rng.expovariate(1 / (gap_s * 80))

    return _together([agent(n) for n in range(12)])


def _shifting(seed: int) -> _Rows:
    """Demand by Zipf that goes over to other models every 700 requests."""
    rng, at_s, model = random.Random(f"shift{seed}"), 0.0, 0
    order = list(range(24))
    while True:
        rng.shuffle(order)
        for _ in range(700):
            if rng.random() < 0.5:
                model = rng.choices(order, _zipf(24, 1.1))[0]
            at_s += rng.expovariate(0.2)
            yield _row(at_s, f"a{model % 7}", model)


def _loop(seed: int) -> _Rows:
    """Eleven models in turn, three requests each; one in ten goes elsewhere."""
    rng, at_s, number = random.Random(f"loop{seed}"), 0.0, 0
    while True:
        at_s += rng.uniform(4, 6)
        model = number // 3 % 11 if rng.random() > 0.1 else rng.randrange(11)
        yield _row(at_s, f"a{model % 3}", model)
        number += 1


def _scan(seed: int) -> _Rows:
    """Six agents with a model each, and an evaluation that goes through all 20 now and then."""

    def worker(n: int) -> _Rows:
        rng = random.Random(f"scan{seed}/{n}")
        at_s = rng.random() * 100
        while True:
            for _ in range(_about(rng, 12)):
                yield _row(at_s, f"a{n}", n)
                at_s += _spread(rng, 20, 0.8)
            at_s += _spread(rng, 400 * (1 + n), 0.8)

    def evaluation() -> _Rows:
        rng = random.Random(f"scan{seed}")
        at_s = 1000.0
        while True:
            for model in range(20):
                for _ in range(3):
                    yield _row(at_s, "evaluation", model)
                    at_s += rng.uniform(10, 20)
            at_s += _spread(rng, 4000, 0.5)

    return _together([worker(n) for n in range(6)] + [evaluation()])


FAMILIES: dict[str, Callable[[int], _Rows]] = {
    "one model each": _one_model_each,
    "several models each": _several_models_each,
    "hand-overs": _hand_overs,
    "chat": _chat,
    "schedule": _schedule,
    "steady": _steady,
    "own taste": _own_taste,
    "shifting": _shifting,
    "loop": _loop,
    "scan": _scan,
}
