"""Out of memory, ever? The scheduler's core under random operations on a hostile machine.

    scripts/bench/oom.py [--operations 10000] [--seeds 200] [--first 0] [--limit-s 600] [--json]

Requests, cancellations, models removed and resized, a program that takes up to 60 % of a card at
any moment, deaths of workers, readings up to 2 s old, estimates off by up to 3 %: see
`tests/scheduler/ordeal.py`, which also says what an out-of-memory is and what the optimum.
`oom` is of workers that claim all their bytes at once; `oom_checked` and `oom_unchecked` (on a
twentieth of the seeds) are of workers that allocate part by part, with and without a look before.
`refused_midway_checked` counts what was refused to a checked worker and waited for by it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.scheduler.ordeal import Loading, Survived, endure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--operations", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--limit-s", type=float, default=3600.0, help="no new seed after this")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    figures = _figures(options)
    for name, value in figures.items():
        print(f"{name:>36}  {value}")
    if options.json:
        figures |= {
            "command": " ".join(["scripts/bench/oom.py", *sys.argv[1:]]),
            "versions": f"python {platform.python_version()}",
            "load_average": os.getloadavg()[0],
        }
        print(json.dumps(figures))
    return 0


def _figures(options: argparse.Namespace) -> dict[str, object]:
    until_s = time.monotonic() + options.limit_s
    some = max(options.seeds // 20, 1)
    with ProcessPoolExecutor(options.processes) as pool:

        def runs(seeds: int, how: Callable[[int], Survived]) -> list[Survived]:
            done: list[Survived] = []
            while len(done) < seeds and (not done or time.monotonic() < until_s):
                batch = range(len(done), min(len(done) + options.processes, seeds))
                done += pool.map(how, (options.first + seed for seed in batch))
            return done

        one = partial(endure, operations=options.operations)
        checked = runs(some, partial(one, loading=Loading.CHECKED))
        unchecked = runs(some, partial(one, loading=Loading.UNCHECKED))
        known = runs(some, partial(one, knows_all=True))
        claimed = runs(options.seeds, one)
    return {
        "oom": sum(run.oom for run in claimed),
        "over_physical": sum(run.over_physical for run in claimed),
        "over_reserved": sum(run.over_reserved for run in claimed),
        "residency_vs_optimum_pct": _residency(claimed),
        "residency_knowing_all_pct": _residency(known),
        "operations": sum(run.operations for run in claimed),
        "seeds": len(claimed),
        "loads": sum(run.loads for run in claimed),
        "declined": sum(run.declined for run in claimed),
        "deaths": sum(run.deaths for run in claimed),
        "steps_served": sum(run.served for run in claimed),
        "oom_checked": sum(run.oom for run in checked),
        "refused_midway_checked": sum(run.refused_midway for run in checked),
        "declined_checked": sum(run.declined for run in checked),
        "residency_checked_pct": _residency(checked),
        "oom_unchecked": sum(run.oom for run in unchecked),
        "seeds_checked": len(checked),
        "loads_checked": sum(run.loads for run in checked),
        "seeds_unchecked": len(unchecked),
        "seeds_knowing_all": len(known),
    }


def _residency(runs: list[Survived]) -> float:
    resident = sum(run.resident_byte_s for run in runs)
    return round(100.0 * resident / sum(run.optimum_byte_s for run in runs), 1)


if __name__ == "__main__":
    sys.exit(main())
