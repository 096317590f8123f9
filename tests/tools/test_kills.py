"""kill -9 at random moments: nothing happens twice, nothing is lost, and doubt is always told."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.tools.conftest import REPOSITORY
from tests.tools.stub_daemon import call, read_journal

SEED = 20261123


@dataclass
class Tally:
    kills: int = 0
    twice: int = 0
    lost: int = 0
    in_doubt: int = 0
    completed: int = 0


def start(folder: Path, calls: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.tools.stub_daemon", str(folder), str(calls)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def kill_runners(folder: Path) -> None:
    """Every runner that has claimed a call and not reported."""
    for claim in (folder / "state" / "calls").glob("*.claim"):
        if not claim.with_suffix(".done").exists():
            try:
                os.kill(int(claim.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                continue


def one_run(folder: Path, calls: int, kills: int, rng: random.Random, runners: bool) -> Tally:
    """Drive `calls` calls to their end through `kills` kills, then count what really happened."""
    workspace = folder / "workspace"
    workspace.mkdir(parents=True)
    for number in range(calls):
        if call(number).name == "edit_file":
            (workspace / f"edited-{number}").write_text("begin")
    tally = Tally()
    for _ in range(kills):
        process = start(folder, calls)
        try:
            process.wait(rng.uniform(0.02, 0.5))
        except subprocess.TimeoutExpired:
            process.kill()
            tally.kills += 1
            if runners:
                kill_runners(folder)
        process.communicate()
    process = start(folder, calls)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()[-2000:]
    return count(folder, calls, tally)


def count(folder: Path, calls: int, tally: Tally) -> Tally:
    workspace, states = folder / "workspace", read_journal(folder / "journal")
    effects = folder / "workspace" / "effects"
    lines = Counter(effects.read_text().split() if effects.exists() else [])
    notes = "".join(path.read_text() for path in (folder / "notes").glob("*"))
    for number in range(calls):
        match call(number).name:
            case "shell":
                times = lines[str(number)]
            case "edit_file":
                times = (workspace / f"edited-{number}").read_text().count(str(number))
            case "write_file":
                times = int((workspace / f"written-{number}").exists())
            case _:
                times = notes.count(f'"fact {number}"')
        state = states.get(f"call-{number}")
        tally.twice += times > 1
        tally.lost += state == "completed" and times == 0
        tally.lost += state not in ("completed", "in_doubt")
        tally.completed += state == "completed"
        tally.in_doubt += state == "in_doubt"
    return tally


def run_many(tmp_path: Path, runs: int, calls: int, kills: int, runners: bool) -> Tally:
    rng, total = random.Random(SEED), Tally()
    for number in range(runs):
        tally = one_run(tmp_path / str(number), calls, kills, rng, runners)
        for name in vars(total):
            setattr(total, name, getattr(total, name) + getattr(tally, name))
    print(total)
    return total


def test_a_killed_daemon_repeats_nothing_and_loses_nothing(tmp_path: Path) -> None:
    tally = run_many(tmp_path, runs=1, calls=20, kills=3, runners=False)
    assert (tally.twice, tally.lost, tally.in_doubt) == (0, 0, 0)
    assert tally.completed == 20
    assert tally.kills > 0


def test_a_killed_runner_leaves_a_call_in_doubt_and_never_repeats_it(tmp_path: Path) -> None:
    tally = run_many(tmp_path, runs=1, calls=20, kills=3, runners=True)
    assert (tally.twice, tally.lost) == (0, 0)
    assert tally.completed + tally.in_doubt == 20


@pytest.mark.slow
@pytest.mark.parametrize("runners", [False, True], ids=["daemon", "daemon and runner"])
def test_two_hundred_kills(tmp_path: Path, runners: bool) -> None:
    tally = run_many(tmp_path, runs=40, calls=30, kills=5, runners=runners)
    assert (tally.twice, tally.lost) == (0, 0)
    assert runners or tally.in_doubt == 0
