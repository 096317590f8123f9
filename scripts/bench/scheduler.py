"""Swap policy on a trace: the product's own core against Belady, LRU and LFU with ageing.

    scripts/bench/scheduler.py --trace FILE.csv --slots 4 [--window 16] [--json]
    scripts/bench/scheduler.py --make zipf|bursts --out FILE.csv [--seed 0]
    scripts/bench/scheduler.py --decisions [--json]
    scripts/bench/scheduler.py --families [--seed 2] [--rows 8000] [--json]
    scripts/bench/scheduler.py --preloads [--seed 1] [--seeds 3] [--rows 2000] [--only A,B] [--json]

A trace has the columns time_s, agent, model, duration_s; all models are of one size and `--slots`
of them are resident at once. `--make` writes a development trace: real arrivals (see
../shared/traces/README.md, stretched a hundredfold) with models drawn by a seed. `--decisions`
times one decision with 50 models on 8 devices and 1,000 requests waiting: one event with all that
follows from it, and by each step granted and each decision recorded in it. `--families` replays
the self-made families of tests/scheduler/families.py in arrival order. `--preloads` plays the teams
of tests/scheduler/teams.py and the families on virtual time, without and with preloads.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from appliance.errors import BadRequest
from appliance.gpu.calibration import Calibration, load_key
from appliance.gpu.footprint import ShapeFootprint
from appliance.gpu.shape import read_shape
from appliance.gpu.types import HOST, KvType, Layout, ModelShape
from appliance.gpu.wants import Want
from appliance.scheduler.core import Core
from appliance.scheduler.memory_placer import MemoryPlacer
from appliance.scheduler.placing import BestFit
from appliance.scheduler.policy import Policy
from appliance.scheduler.replay import (
    TraceRow,
    lfu_loads,
    lru_loads,
    optimum_loads,
    read_trace,
    replay,
)
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
    StartInstance,
    StepRequested,
    StopInstance,
    Tick,
)
from tests.gpu.sketches.catalogue import SKETCHES
from tests.gpu.sparse import write
from tests.scheduler.families import FAMILIES, make
from tests.scheduler.teams import TEAMS, Played, of_trace, play, team

TRACES = Path(__file__).resolve().parents[2] / ".." / "shared" / "traces"
STRETCH = 100.0
"""A data centre's arrivals on one workstation: an hour becomes four days."""
TOKENS_PER_S = 40.0
_PLACED = ("llama-3.1-8b", "mistral-nemo-12b", "qwen2.5-7b", "llama-3.2-3b", "llama-2-7b")
"""Models whose decisions are timed, ten of each and with one of three windows."""
_FOLLOWS = {"ready", "gone", "stop", "drain", "read_ahead"}
"""Records of what happened or follows; every other one is a decision (a step granted or refused, a
model loaded, evicted, preloaded)."""


def main() -> int:
    options = _options()
    if options.make:
        return _write(_make(options.make, options.seed, options.rows), Path(options.out))
    if options.decisions:
        figures = _decisions()
    elif options.preloads:
        figures = _preloads(options)
    elif options.families:
        figures = _families(options)
    else:
        try:
            figures = _swaps(options)
        except BadRequest as error:
            print(f"scheduler.py: {error}", file=sys.stderr)
            return 2
    for name, value in figures.items():
        print(f"{name:>18}  {value}")
    if options.json:
        figures |= {
            "command": " ".join(["scripts/bench/scheduler.py", *sys.argv[1:]]),
            "versions": f"python {platform.python_version()}",
            "load_average": os.getloadavg()[0],
        }
        print(json.dumps(figures))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trace", help="CSV with time_s, agent, model, duration_s")
    parser.add_argument("--slots", type=_count, default=4, help="models resident at once")
    parser.add_argument("--window", type=_count, default=1, help="requests that may be reordered")
    parser.add_argument(
        "--load-s", type=_seconds, default=10.0, help="seconds a load takes (waits)"
    )
    parser.add_argument("--make", choices=["zipf", "bursts"], help="write a development trace")
    parser.add_argument("--out", default="trace.csv")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=28185)
    parser.add_argument("--decisions", action="store_true", help="time one decision")
    parser.add_argument("--families", action="store_true", help="self-made families of traces")
    parser.add_argument("--preloads", action="store_true", help="teams, without and with preloads")
    parser.add_argument("--seeds", type=int, default=3, help="how many, of --preloads")
    parser.add_argument("--only", help="of --preloads: these teams, families, zipf, bursts")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    asked = (options.make, options.decisions, options.families, options.preloads, options.trace)
    if not any(asked):
        parser.error("give --trace, --make, --decisions, --families or --preloads")
    return options


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _swaps(options: argparse.Namespace) -> dict[str, object]:
    trace = read_trace(Path(options.trace))
    models = [row.model for row in trace]
    result = replay(trace, options.slots, options.window, options.load_s)
    optimum = optimum_loads(models, options.slots)
    waits = sorted(result.waits_s)
    took = sorted(result.decisions_s)
    return {
        "requests": len(trace),
        "slots": options.slots,
        "window": options.window,
        "loads": result.loads,
        "optimum_loads": optimum,
        "ratio": round(result.loads / max(optimum, 1), 4),
        "lru_loads": lru_loads(models, options.slots),
        "lfu_loads": lfu_loads(models, options.slots),
        "max_overtaken": max(result.overtaken, default=0),
        "wait_p99_s": round(_quantile(waits, 0.99), 3),
        "decision_us_p50": round(_quantile(took, 0.5) * 1e6, 1),
        "decision_us_p99": round(_quantile(took, 0.99) * 1e6, 1),
    }


def _families(options: argparse.Namespace) -> dict[str, object]:
    """Loads by Belady's over all families, in the geometric mean and each, beside the simple
    rules'. Cells in which Belady needs under 30 loads are left out: they are all beginning."""
    figures: dict[str, object] = {}
    logs: dict[str, list[float]] = {}
    for family in FAMILIES:
        trace = make(family, options.seed, min(options.rows, 8000))
        models = [row.model for row in trace]
        for slots in (2, 4, 8):
            optimum = optimum_loads(models, slots)
            if optimum < 30:
                continue
            ratios = {
                "ours": replay(trace, slots).loads / optimum,
                "lru": lru_loads(models, slots) / optimum,
                "lfu": lfu_loads(models, slots) / optimum,
            }
            told = " ".join(f"{ratio:.2f}" for ratio in ratios.values())
            figures[f"{family} @{slots}"] = told
            for rule, ratio in ratios.items():
                logs.setdefault(f"{rule}_by_belady_{slots}", []).append(math.log(ratio))
    means = {name: round(math.exp(sum(some) / len(some)), 3) for name, some in logs.items()}
    return figures | dict(sorted(means.items()))


def _preloads(options: argparse.Namespace) -> dict[str, object]:
    """Seconds that a step waits, and for loads, in the mean and at p95 without and with preloads;
    the loads of both, and of the preloads those made and those that nobody had asked for when they
    went. On one device that holds two or four models, over some seeds together."""
    figures: dict[str, object] = {}
    first, steps = options.seed or 1, min(options.rows, 2000)
    seeds = range(first, first + options.seeds)
    names = options.only.split(",") if options.only else [*TEAMS, *FAMILIES, "zipf", "bursts"]
    for name in names:
        for places in (2, 4):
            without, with_ = (
                [_play(name, seed, places, steps, preloads=preloads) for seed in seeds]
                for preloads in (False, True)
            )
            told = [
                f"{_mean(w for one in without for w in waits(one)):.3f} -> "
                f"{_mean(w for one in with_ for w in waits(one)):.3f}"
                for waits in (lambda one: one.waits_s, lambda one: one.load_waits_s)
            ]
            p95 = [
                _quantile(sorted(w for one in some for w in one.waits_s), 0.95)
                for some in (without, with_)
            ]
            figures[f"{name} @{places}"] = (
                f"wait {told[0]} for loads {told[1]} p95 {p95[0]:.1f} -> {p95[1]:.1f} "
                f"loads {sum(one.loads for one in without)} -> {sum(one.loads for one in with_)} "
                f"preloads {sum(one.preloads for one in with_)} "
                f"wasted {sum(one.wasted for one in with_)}"
            )
    return figures


def _play(name: str, seed: int, places: int, steps: int, *, preloads: bool) -> Played:
    policy = Policy(preloads=preloads)
    if name in TEAMS:
        return play(*team(name, seed), places, steps, policy)
    is_family = name in FAMILIES
    rows = make(name, seed, steps) if is_family else _make(name, seed, 28185)[:steps]
    return play(of_trace(rows), {row.model for row in rows}, places, steps, policy)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / max(len(found), 1)


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


# ── development traces ──────────────────────────────────────────────────────────────────────────


def _make(kind: str, seed: int, rows: int) -> list[TraceRow]:
    arrivals = _arrivals()[:rows]
    rng = random.Random(seed)
    return _zipf(arrivals, rng) if kind == "zipf" else _bursts(arrivals, rng)


def _arrivals() -> list[tuple[float, float]]:
    """Seconds since the first arrival, stretched, and seconds of decoding, over both services."""
    found = []
    for name in ("azure_llm_2023_code.csv", "azure_llm_2023_conv.csv"):
        with (TRACES / name).open(newline="") as file:
            for row in csv.DictReader(file):
                at = datetime.fromisoformat(row["TIMESTAMP"][:26])
                found.append((at.timestamp(), int(row["GeneratedTokens"]) / TOKENS_PER_S))
    found.sort()
    return [((at - found[0][0]) * STRETCH, seconds) for at, seconds in found]


def _zipf(arrivals: list[tuple[float, float]], rng: random.Random) -> list[TraceRow]:
    """Every request draws one of 20 models, the n-th most popular with weight 1/n."""
    names = [f"model{n:02}" for n in range(20)]
    drawn = rng.choices(names, [1 / (n + 1) for n in range(20)], k=len(arrivals))
    return [
        TraceRow(at, f"agent{rng.randrange(8)}", model, seconds)
        for (at, seconds), model in zip(arrivals, drawn, strict=True)
    ]


def _bursts(arrivals: list[tuple[float, float]], rng: random.Random) -> list[TraceRow]:
    """Eight agents that each own one to four of 20 models; three are at work at a time, for twenty
    requests on average, and change the model every tenth."""
    own = [[f"model{n:02}" for n in rng.sample(range(20), rng.randint(1, 4))] for _ in range(8)]
    at_work: list[list[object]] = []
    rows = []
    for at, seconds in arrivals:
        while len(at_work) < 3:
            busy = {burst[0] for burst in at_work}
            agent = rng.choice([n for n in range(8) if n not in busy])
            at_work.append([agent, rng.choice(own[agent]), 1 + int(rng.expovariate(1 / 20))])
        burst = rng.choice(at_work)
        agent, model, left = burst
        assert isinstance(agent, int)
        assert isinstance(left, int)
        if rng.random() < 0.1:
            burst[1] = model = rng.choice(own[agent])
        rows.append(TraceRow(at, f"agent{agent}", str(model), seconds))
        burst[2] = left - 1
        if left <= 1:
            at_work.remove(burst)
    return rows


def _write(rows: list[TraceRow], path: Path) -> int:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["time_s", "agent", "model", "duration_s"])
        for row in rows:
            writer.writerow([f"{row.time_s:.3f}", row.agent, row.model, f"{row.duration_s:.3f}"])
    print(f"{len(rows)} requests in {path}")
    return 0


# ── the cost of a decision ──────────────────────────────────────────────────────────────────────


def _decisions() -> dict[str, object]:
    """Models as the daemon places them, before and after a load of each was measured, and models of
    one size on one card each."""
    with tempfile.TemporaryDirectory() as folder:
        shapes = [read_shape(write(SKETCHES[name](), Path(folder))) for name in _PLACED]
    rng = random.Random(0)
    placed, measured, sized = [], [], []
    for number in range(50):
        shape = shapes[number % len(shapes)]
        window = rng.choice((4096, 8192, 12288))
        for some, known in ((placed, None), (measured, _measured(shape))):
            footprint = ShapeFootprint(shape, known, is_promise=True)
            want = Want(f"m{number}", footprint, window, slots=4, min_slots=4, allow_partial=False,
                        allow_host=False)  # fmt: skip
            some.append(ModelSpec(want.model, 4, demand=want))
        sized.append(ModelSpec(f"m{number}", 4, demand=rng.randint(4, 16) << 30))
    figures: dict[str, object] = {"models": 50, "devices": 8, "waiting": 1000}
    for prefix, models in (("", placed), ("measured_", measured)):
        figures |= _timed(_placing_core(), models, prefix)
    return figures | _timed(Core(BestFit()), sized, "one_size_")


def _placing_core() -> Core:
    core = Core(MemoryPlacer(lambda: core.holdings(), lambda _: False))
    return core


def _measured(shape: ModelShape) -> Calibration:
    """One load on two cards took what was promised."""
    footprint = ShapeFootprint(shape, is_promise=True)
    counts = (footprint.n_layers - 10, 10)
    layout = Layout(8192, 4, KvType.F16, footprint.n_layers, tuple(map(float, counts)))
    key = load_key(shape, footprint.params(layout, ()))
    sizes = footprint.bytes_by_device(layout)
    return Calibration(measured={(key, 0): sizes[0], (key, 1): sizes[1]})


def _timed(core: Core, models: list[ModelSpec], prefix: str) -> dict[str, object]:
    """Every event of 3,000 steps by 200 agents with 1,000 waiting at any moment, and after each
    what the dispatcher does when the effects are out."""
    rng = random.Random(0)
    cards = tuple(DeviceView(f"gpu{n}", 24 << 30) for n in range(8))
    core.handle(InventoryChanged((*cards, DeviceView(HOST, 64 << 30))), 0.0)
    core.handle(ConfigChanged(tuple(models)), 0.0)
    now_s, number, waiting = 0.0, 0, 0
    leases: list[str] = []
    todo: list[Event] = []
    took: list[tuple[float, int, int]] = []
    tidied: list[float] = []
    while number < 3000:
        if not todo:
            now_s += 0.01
            if waiting < 1000:
                number += 1
                waiting += 1
                agent = rng.randrange(200)
                name = f"m{(agent * 7 + rng.randrange(3)) % 50}"
                todo.append(StepRequested(f"r{number}", f"a{agent}", (name,)))
            elif leases:
                todo.append(LeaseReleased(leases.pop(rng.randrange(len(leases))), 20, 1.0))
            else:
                now_s += 0.5
                todo.append(Tick())
        began = time.thread_time()
        effects = core.handle(todo.pop(), now_s)
        seconds = time.thread_time() - began
        kinds = [e.kind for e in effects if isinstance(e, Record)]
        decided = sum(kind not in _FOLLOWS for kind in kinds)
        took.append((seconds, kinds.count("grant"), max(decided, 1)))
        began = time.thread_time()
        while core.tidy():
            pass
        tidied.append(time.thread_time() - began)
        for effect in effects:
            match effect:
                case Grant():
                    waiting -= 1
                    leases.append(effect.lease_id)
                case StartInstance():
                    todo.append(InstanceReady(effect.instance_id, 5.0, 4))
                case StopInstance():
                    todo.append(InstanceGone(effect.instance_id))
                case _:
                    pass
    took = took[500:]
    events = sorted(seconds for seconds, _, _ in took)
    steps = sorted(s / grants for s, grants, _ in took if grants for _ in range(grants))
    each = sorted(s / decided for s, _, decided in took for _ in range(decided))
    return {
        f"{prefix}decisions": len(events),
        **_quantiles(f"{prefix}decision_us", events),
        f"{prefix}granted": len(steps),
        **_quantiles(f"{prefix}granted_step_us", steps),
        f"{prefix}granted_at_once_max": max(grants for _, grants, _ in took),
        f"{prefix}each": len(each),
        **_quantiles(f"{prefix}each_us", each),
        **_quantiles(f"{prefix}tidy_us", sorted(tidied[500:])),
    }


def _quantiles(name: str, ordered: list[float]) -> dict[str, object]:
    shares = (50, 90, 99)
    return {f"{name}_p{n}": round(_quantile(ordered, n / 100) * 1e6, 1) for n in shares}


if __name__ == "__main__":
    sys.exit(main())
