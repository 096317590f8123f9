"""What journaling costs: CPU and wall a step, growth, opening a long session, fsyncs.

A step is three events of 2 KB: the model's answer, a tool call's intent (on disk before it goes
on) and its result. Each measurement has a fresh process and database; the median of `--runs` is
reported. `--json` prints one flat object as the last line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from appliance.clock import SystemClock
from appliance.store.database import Database
from appliance.store.index import Index, TurnRow
from appliance.store.journal import Draft, Journal

BODY_BYTES = 2000
WINDOW_EVENTS = 200
CONCURRENT = 16


async def write_steps(journal: Journal, steps: int, turn: str) -> None:
    text = "lorem ipsum " * (BODY_BYTES // 12)
    for step in range(steps):
        for kind, durable in (("step.completed", 0), ("tool.intended", 1), ("tool.completed", 0)):
            await journal.append(
                Draft("ses_bench", kind, {"step": step, "text": text}, turn), durable=bool(durable)
            )


async def one_turn(folder: Path, steps: int) -> dict[str, float]:
    async with Database(folder) as database:
        journal = Journal(database, SystemClock())
        row = TurnRow("t", "ses_bench", "a", "running", 0, None, 0, 0)
        await journal.append(Draft("ses_bench", "turn.accepted", {}, "t"), index=(row,))
        wall, cpu = time.perf_counter(), time.process_time()
        await write_steps(journal, steps, "t")
        cpu_ms = (time.process_time() - cpu) * 1000 / steps
        wall_ms = (time.perf_counter() - wall) * 1000 / steps
    size = (folder / "appliance.db").stat().st_size
    return {"cpu_ms": cpu_ms, "wall_ms": wall_ms, "bytes": size}


async def many_turns(folder: Path, steps: int) -> dict[str, float]:
    async with Database(folder) as database:
        journal = Journal(database, SystemClock())
        await asyncio.gather(*(write_steps(journal, steps, f"t{n}") for n in range(CONCURRENT)))
    return {}


async def open_session(folder: Path) -> dict[str, float]:
    started = time.perf_counter()
    async with Database(folder) as database:
        journal = Journal(database, SystemClock())
        await Index(database).turns(session="ses_bench")
        await journal.read("ses_bench", newest_first=True, limit=WINDOW_EVENTS)
        opened = time.perf_counter() - started
        after = 0
        while chunk := await journal.read("ses_bench", after=after):
            after = chunk[-1].seq
        folded = time.perf_counter() - started
        verifying = time.perf_counter()
        report = await journal.verify()
        rate = report.rows / (time.perf_counter() - verifying)
    assert report.ok
    return {"open_s": opened, "read_all_s": folded, "verify_rows_s": rate}


def child(mode: str, folder: Path, steps: int, prefix: tuple[str, ...] = ()) -> dict[str, float]:
    command = [*prefix, sys.executable, __file__, "--child", mode, str(folder), str(steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def fresh(root: Path, name: str) -> Path:
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def fsyncs_per_step(root: Path, steps: int) -> float | None:
    """Counted by strace over all threads; None where there is no strace."""
    if shutil.which("strace") is None:
        return None
    log = root / "strace"
    prefix = ("strace", "-f", "-qq", "-e", "trace=fsync,fdatasync", "-o", str(log))
    child("many", fresh(root, "many"), steps, prefix)
    count = sum("sync(" in line for line in log.read_text().splitlines())
    return count / (steps * CONCURRENT)


def measure(root: Path, runs: int, long_steps: int) -> dict[str, object]:
    short = [child("one", fresh(root, f"short{n}"), 500) for n in range(runs)]
    long_folder = fresh(root, "long")
    long = child("one", long_folder, long_steps)
    opened = [child("open", long_folder, 0) for _ in range(runs)]

    def median(rows: list[dict[str, float]], key: str) -> float:
        return round(statistics.median(row[key] for row in rows), 4)

    return {
        "cpu_ms_per_step": median(short, "cpu_ms"),
        "wall_ms_per_step": median(short, "wall_ms"),
        "bytes_500_steps": median(short, "bytes"),
        f"bytes_{long_steps}_steps": long["bytes"],
        "growth_ratio": round(long["bytes"] / median(short, "bytes"), 3),
        "open_session_s": median(opened, "open_s"),
        "read_whole_session_s": median(opened, "read_all_s"),
        "verify_rows_per_s": round(median(opened, "verify_rows_s")),
        "fsyncs_per_step_16_turns": fsyncs_per_step(root, 50),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--dir", type=Path, help="a folder on the disk to measure")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        mode, folder, steps = options.child
        work = {
            "one": lambda: one_turn(Path(folder), int(steps)),
            "many": lambda: many_turns(Path(folder), int(steps)),
            "open": lambda: open_session(Path(folder)),
        }[mode]
        print(json.dumps(asyncio.run(work())))
        return
    with tempfile.TemporaryDirectory(dir=options.dir) as root:
        figures = measure(Path(root), options.runs, options.steps)
    figures |= {
        "command": "scripts/bench/journal.py " + " ".join(sys.argv[1:]),
        "versions": f"python {platform.python_version()}, sqlite {sqlite3.sqlite_version}",
        "load_average": os.getloadavg()[0],
    }
    if not options.json:
        for name, value in figures.items():
            print(f"{name:28} {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
