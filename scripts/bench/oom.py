"""Out of memory, ever? The scheduler's core under random operations on a hostile machine.

    scripts/bench/oom.py [--operations 10000] [--seeds 200] [--first 0] [--limit-s 600]
                         [--rows FILE] [--json]

Requests, cancellations, models removed and resized, a program that takes up to 60 % of a card at
any moment, deaths of workers, readings up to 2 s old, estimates off by up to 3 %: see
`tests/scheduler/ordeal.py`; what an out-of-memory is says `tests/scheduler/machine.py`, and what
could have been held at best `optimum.py` (a schedule that knows the future) and `packing.py` (each
instant by itself) beside it.

`oom` is of workers that claim all their bytes at once; `oom_checked` and `oom_unchecked` (on a
twentieth of the seeds) are of workers that allocate part by part, with and without a look before.
`refused_midway_checked` counts what was refused to a checked worker and waited for by it.

With `--rows` each seed's counts are kept in a file, and what is there is not run again: a long run
may be cut into pieces, and the last piece, or one with `--limit-s 0`, tells the sum of all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.scheduler.machine import Loading
from tests.scheduler.optimum import most_byte_s
from tests.scheduler.ordeal import Survived, endure

_KNOWN = "knowing_all"
_MODES = (*Loading, _KNOWN)
_ONE_IN = 20
"""Of the seeds, for the modes beside the first."""
_SCHEDULED_ONE_IN = 10
"""Of the seeds the optimum over time is worked out, which takes as long as the run; not for a core
that knows all, whose bytes come back at once."""

Row = dict[str, float]


@dataclass(frozen=True, slots=True)
class _Job:
    mode: str
    seed: int
    operations: int

    @property
    def key(self) -> str:
        return f"{self.mode} {self.seed} {self.operations}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--operations", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--limit-s", type=float, default=3600.0, help="no new seed after this")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rows", type=Path, help="keeps each seed's counts, and begins with them")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    jobs = list(_jobs(options.first, options.seeds, options.operations))
    known = _read(options.rows)
    todo = [job for job in jobs if job.key not in known]
    for key, row in _run(todo, options.processes, options.limit_s):
        known[key] = row
        if options.rows is not None:
            with options.rows.open("a") as file:
                file.write(json.dumps({"key": key, **row}) + "\n")
    figures = _figures({job: known[job.key] for job in jobs if job.key in known})
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


def _jobs(first: int, seeds: int, operations: int) -> Iterator[_Job]:
    some = max(seeds // _ONE_IN, 1)
    for mode in _MODES:
        for seed in range(first, first + (seeds if mode == Loading.CLAIMED else some)):
            yield _Job(mode, seed, operations)


def _run(todo: list[_Job], processes: int, limit_s: float) -> Iterator[tuple[str, Row]]:
    until_s = time.monotonic() + limit_s
    waiting = iter(todo)
    with ProcessPoolExecutor(processes) as pool:
        first = islice(waiting, processes if limit_s > 0 else 0)
        running = {pool.submit(_row, job): job for job in first}
        while running:
            done = next(as_completed(running))
            yield running.pop(done).key, done.result()
            if time.monotonic() < until_s:
                running |= {pool.submit(_row, job): job for job in islice(waiting, 1)}


def _row(job: _Job) -> Row:
    loading = Loading.CLAIMED if job.mode == _KNOWN else Loading(job.mode)
    run = endure(job.seed, job.operations, loading, knows_all=job.mode == _KNOWN)
    row = {one.name: getattr(run, one.name) for one in fields(Survived) if one.name != "course"}
    if job.mode != _KNOWN and job.seed % _SCHEDULED_ONE_IN == 0:
        row["schedule_byte_s"] = most_byte_s(run.course)
    return row


def _read(file: Path | None) -> dict[str, Row]:
    if file is None or not file.exists():
        return {}
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {row.pop("key"): row for row in rows}


def _figures(rows: dict[_Job, Row]) -> dict[str, object]:
    of = {mode: [row for job, row in rows.items() if job.mode == mode] for mode in _MODES}

    def total(mode: str, name: str) -> int:
        return int(sum(row[name] for row in of[mode]))

    claimed = of[Loading.CLAIMED]
    figures: dict[str, object] = {
        "oom": total(Loading.CLAIMED, "oom"),
        "over_physical": total(Loading.CLAIMED, "over_physical"),
        "over_reserved": total(Loading.CLAIMED, "over_reserved"),
        "residency_vs_optimum_pct": _residency(claimed, "schedule_byte_s"),
        "residency_of_seeds_pct": _spread(claimed, "schedule_byte_s"),
        "residency_vs_instants_pct": _residency(claimed, "instants_byte_s"),
        "residency_of_seeds_vs_instants_pct": _spread(claimed, "instants_byte_s"),
        "seeds": len(claimed),
        "seeds_of_optimum": sum("schedule_byte_s" in row for row in claimed),
        "mean_wait_s": round(_mean_wait_s(claimed), 2),
        "longest_wait_s": _most(claimed, "longest_wait_s"),
        "starved_s": _most(claimed, "starved_s"),
        "most_starts": _most(claimed, "most_starts"),
    }
    for name in ("operations", "loads", "declined", "barren", "deaths", "served"):
        figures[name] = total(Loading.CLAIMED, name)
    for mode in _MODES:
        if mode != Loading.CLAIMED:
            for name in ("oom", "refused_midway", "declined", "loads"):
                figures[f"{name}_{mode}"] = total(mode, name)
            figures[f"over_{mode}"] = total(mode, "over_physical") + total(mode, "over_reserved")
            figures[f"residency_{mode}_pct"] = _residency(of[mode], "schedule_byte_s")
            figures[f"residency_vs_instants_{mode}_pct"] = _residency(of[mode], "instants_byte_s")
            figures[f"starved_s_{mode}"] = _most(of[mode], "starved_s")
            figures[f"most_starts_{mode}"] = _most(of[mode], "most_starts")
            figures[f"seeds_{mode}"] = len(of[mode])
    return figures


def _residency(rows: list[Row], optimum: str) -> float | None:
    """Of all bytes times seconds; None where that optimum was not asked for."""
    measured = [row for row in rows if optimum in row]
    most = sum(row[optimum] for row in measured)
    resident = sum(row["resident_byte_s"] for row in measured)
    return round(100.0 * resident / most, 1) if most else None


def _spread(rows: list[Row], optimum: str) -> list[float | None]:
    shares = [_residency([row], optimum) for row in rows if optimum in row]
    known = [share for share in shares if share is not None]
    return [min(known, default=None), max(known, default=None)]


def _mean_wait_s(rows: list[Row]) -> float:
    return sum(row["waited_s"] for row in rows) / max(sum(row["served"] for row in rows), 1)


def _most(rows: list[Row], name: str) -> float:
    return round(max((row[name] for row in rows), default=0.0), 1)


if __name__ == "__main__":
    sys.exit(main())
