"""How long a tool's process takes to start: contained each way, and through the detached runner.

    python scripts/bench/sandbox.py [--starts N] [--json]

Variants are interleaved; medians and 90th percentiles in milliseconds. `bare` is a fork and exec of
/bin/true from Python, to subtract; `call` is a runner forked by the warm starter, `call_by_path`
one that starts a Python of its own. The last line with --json is one flat object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from appliance.tools.detached import DetachedCalls, Job, Starter
from appliance.tools.sandbox.limits import Limits
from appliance.tools.sandbox.plan import Cage, bubblewrap_argv
from appliance.tools.sandbox.report import SandboxReport, probe

LIMITS = Limits(1 << 30, 128, 1 << 30, 60)


def start_bubblewrap(report: SandboxReport, folder: str) -> None:
    fd = os.open(folder, os.O_PATH)
    argv = bubblewrap_argv(report.bwrap, Cage(folder), ["/bin/true"], {"": (fd, True)})
    subprocess.run(argv, pass_fds=(fd,), check=True)
    os.close(fd)


def start_bare() -> None:
    subprocess.run(["/bin/true"], check=True)


def start_python() -> None:
    subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)


async def measure(starts: int) -> dict[str, list[float]]:
    reports = {mode: await probe(mode) for mode in ("bubblewrap", "landlock")}
    times: dict[str, list[float]] = {}
    async with AsyncExitStack() as held:
        root = held.enter_context(tempfile.TemporaryDirectory())
        folders = {name: Path(root) / name for name in ("work", "calls")}
        for folder in folders.values():
            folder.mkdir()
        work = str(folders["work"])
        plain: dict[str, Callable[[], None]] = {"bare": start_bare, "bare_python": start_python}
        if reports["bubblewrap"].can_run_programs:
            plain["bubblewrap"] = lambda: start_bubblewrap(reports["bubblewrap"], work)
        starter = await held.enter_async_context(Starter(folders["calls"]))
        for number in range(starts):
            for name, start in plain.items():
                began = time.perf_counter()
                start()
                times.setdefault(name, []).append((time.perf_counter() - began) * 1000)
            for mode, report in reports.items():
                if not report.can_run_programs:
                    continue
                for way, warm in (("call", starter), ("call_by_path", None)):
                    calls = DetachedCalls(folders["calls"], report, warm)
                    job = Job(
                        f"{way}-{mode}-{number}", "", Cage(work), LIMITS, 30.0,
                        {"PATH": "/usr/bin:/bin"}, ("/bin/true",),
                    )  # fmt: skip
                    began = time.perf_counter()
                    await calls.run(job)
                    taken = (time.perf_counter() - began) * 1000
                    times.setdefault(f"{way}_{mode}", []).append(taken)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    times = asyncio.run(measure(options.starts))
    figures: dict[str, object] = {}
    for name, taken in times.items():
        ordered = sorted(taken)
        figures[f"{name}_median_ms"] = round(statistics.median(ordered), 2)
        figures[f"{name}_p90_ms"] = round(ordered[int(len(ordered) * 0.9)], 2)
    figures["starts"] = options.starts
    figures["command"] = f"python scripts/bench/sandbox.py --starts {options.starts}"
    bwrap = subprocess.run(["bwrap", "--version"], capture_output=True, text=True, check=False)
    figures["versions"] = f"Python {platform.python_version()}, {bwrap.stdout.strip()}, " + (
        f"Linux {platform.release()}"
    )
    figures["load_average"] = os.getloadavg()[0]
    for key, value in figures.items():
        print(f"{key}: {value}")
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
