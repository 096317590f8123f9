"""Models that fit side by side with fewer slots: loads and waiting, with and without their parts.

    scripts/bench/sharing.py [--hours 3] [--seed 1] [--json]

Agents ask for steps of 3 to 12 s at random, whether they were answered or not, of models with four
slots of up to 32k tokens each (real headers, sparse files); the scheduler's core on virtual time,
as in `appliance plan --trace`; loads read 2 GiB/s. *Without* the same models say that they cannot
be loaded with less than they wish for, so that nobody's part is sought; a load may be shrunk to
what is free all the same. docs/adr/0081.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from appliance.gpu.footprint import ShapeFootprint
from appliance.gpu.shape import read_shape
from appliance.gpu.types import GIB, HOST, Device, Inventory
from appliance.gpu.wants import PlacementPolicy, Want
from appliance.scheduler.plan import cards_named, outlook
from appliance.scheduler.replay import TraceRow
from appliance.scheduler.values import ModelSpec
from tests.gpu.sketches.catalogue import SKETCHES
from tests.gpu.sparse import write

MODELS = {
    "a": ("llama-3.1-8b", 32768),
    "b": ("qwen3-8b", 32768),
    "c": ("gemma-2-9b", 8192),
    "d": ("mistral-nemo-12b", 16384),
}
SCENES: dict[str, tuple[str, tuple[tuple[str, float, int], ...]]] = {
    "two models, 24 GiB": ("24GiB", (("a", 15, 2), ("b", 15, 2))),
    "three, 32 GiB": ("32GiB", (("a", 15, 2), ("b", 15, 2), ("c", 15, 2))),
    "four, 2 x 24 GiB": ("2x24GiB", (("a", 15, 2), ("b", 15, 2), ("c", 15, 2), ("d", 15, 2))),
    "three that do not fit, 24 GiB": ("24GiB", (("a", 15, 2), ("b", 15, 2), ("c", 15, 2))),
    "busy and rare, 24 GiB": ("24GiB", (("a", 8, 6), ("b", 300, 1))),
    "busy and seldom, 24 GiB": ("24GiB", (("a", 8, 6), ("b", 60, 1))),
}
"""Cards; and of each model the mean pause of its agents in seconds, and how many they are."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        models = {name: _model(name, *of, Path(folder)) for name, of in MODELS.items()}
        for scene, (cards, agents) in SCENES.items():
            trace = _trace(agents, options.hours, options.seed)
            for how in ("without", "with"):
                used = [replace(models[m], is_elastic=how == "with") for m, _, _ in agents]
                found = outlook(trace, used, _machine(cards), PlacementPolicy()).all
                figures[f"{scene}, {how}"] = {
                    "requests": found.requests, "loads": found.loads,
                    "wait_p50_s": found.wait_p50_s, "wait_p95_s": found.wait_p95_s,
                }  # fmt: skip
                print(f"{scene + ', ' + how:>40}  {figures[f'{scene}, {how}']}")
    if options.json:
        figures["command"] = " ".join(["scripts/bench/sharing.py", *sys.argv[1:]])
        figures["versions"] = f"python {platform.python_version()}"
        print(json.dumps(figures))
    return 0


def _model(name: str, sketch: str, window: int, folder: Path) -> ModelSpec:
    footprint = ShapeFootprint(read_shape(write(SKETCHES[sketch](), folder)), is_promise=True)
    want = Want(name, footprint, window, slots=4, min_slots=1)
    return ModelSpec(name, 4, demand=want, is_elastic=want.is_elastic)


def _machine(cards: str) -> Inventory:
    host = Device(HOST, -1, "host RAM", 64 * GIB, 0, 64 * GIB)
    return Inventory((*cards_named(cards), host), 0.0)


def _trace(agents: Sequence[tuple[str, float, int]], hours: float, seed: int) -> list[TraceRow]:
    rng = random.Random(seed)
    rows: list[TraceRow] = []
    for model, pause_s, number in agents:
        for agent in range(number):
            time_s = rng.uniform(0, pause_s)
            while time_s < hours * 3600:
                lasts_s = rng.uniform(3, 12)
                rows.append(TraceRow(time_s, f"{model}{agent}", model, lasts_s))
                time_s += lasts_s + rng.expovariate(1 / pause_s)
    return sorted(rows, key=lambda row: row.time_s)


if __name__ == "__main__":
    sys.exit(main())
