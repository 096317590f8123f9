"""The detached runner: bounded, adoptable, ended when told, and run by exactly one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.tools import runner as runner_program
from appliance.tools.detached import DetachedCalls, Died, Done, Job, Never, Starter
from appliance.tools.sandbox.limits import Limits
from appliance.tools.sandbox.plan import Cage
from appliance.tools.sandbox.report import SandboxReport
from tests.tools.conftest import until

LIMITS = Limits(256 << 20, 64, 16 << 20, 10)


@pytest.fixture(params=["forked", "by path"])
async def calls(
    tmp_path: Path, sandbox: SandboxReport, request: pytest.FixtureRequest
) -> AsyncIterator[DetachedCalls]:
    (tmp_path / "calls").mkdir()
    (tmp_path / "work").mkdir()
    if request.param == "by path":
        yield DetachedCalls(tmp_path / "calls", sandbox)
        return
    async with Starter(tmp_path / "calls") as starter:
        yield DetachedCalls(tmp_path / "calls", sandbox, starter)


def job(tmp_path: Path, command: str, timeout_s: float = 40.0, name: str = "call") -> Job:
    return Job(
        name, "hash", Cage(str(tmp_path / "work")), LIMITS, timeout_s,
        {"PATH": "/usr/bin:/bin"}, ("/bin/sh", "-c", command),
    )  # fmt: skip


async def test_output_exit_code_and_errors_come_back(tmp_path: Path, calls: DetachedCalls) -> None:
    done = await calls.run(job(tmp_path, "echo out; echo err >&2; exit 3"))
    assert isinstance(done, Done)
    assert (done.output, done.exit_code, done.ended_by) == (b"out\nerr\n", 3, "")


async def test_a_job_that_ran_is_never_run_again(tmp_path: Path, calls: DetachedCalls) -> None:
    first = await calls.run(job(tmp_path, "echo x >> effects; date +%N"))
    second = await calls.run(job(tmp_path, "echo x >> effects; date +%N"))
    assert first == second
    assert (tmp_path / "work" / "effects").read_text() == "x\n"


async def test_many_runners_of_one_job_run_it_once(tmp_path: Path, calls: DetachedCalls) -> None:
    same = job(tmp_path, "echo x >> effects; sleep 0.1")
    fates = await asyncio.gather(*(calls.run(same) for _ in range(5)))
    assert all(isinstance(fate, Done) and fate.exit_code == 0 for fate in fates)
    assert (tmp_path / "work" / "effects").read_text() == "x\n"


async def test_a_runner_goes_on_when_its_waiter_goes_away(
    tmp_path: Path, calls: DetachedCalls
) -> None:
    waiting = asyncio.create_task(calls.run(job(tmp_path, "touch begun; sleep 0.3; echo end")))
    await until(tmp_path / "work" / "begun")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    fate = await calls.adopt("call")
    assert isinstance(fate, Done)
    assert fate.output == b"end\n"


async def test_a_call_nobody_began_is_known_as_such(calls: DetachedCalls) -> None:
    assert await calls.adopt("unknown") == Never()


async def test_a_dead_runner_takes_its_tool_along_and_is_in_doubt_until_decided(
    tmp_path: Path, calls: DetachedCalls
) -> None:
    running = asyncio.create_task(
        calls.run(job(tmp_path, "touch begun; sleep 1; echo x >> effects"))
    )
    await until(tmp_path / "work" / "begun")
    os.kill(int((tmp_path / "calls" / "call.1.claim").read_text()), signal.SIGKILL)
    assert await running == Died()
    assert await calls.adopt("call") == Died()
    again = await calls.run(job(tmp_path, "echo x >> effects"))
    assert isinstance(again, Done)
    assert (tmp_path / "work" / "effects").read_text() == "x\n"


async def test_cancel_ends_a_running_call(tmp_path: Path, calls: DetachedCalls) -> None:
    running = asyncio.create_task(calls.run(job(tmp_path, "echo a; touch begun; sleep 60")))
    await until(tmp_path / "work" / "begun")
    assert calls.cancel("call")
    done = await running
    assert isinstance(done, Done)
    assert (done.ended_by, done.output) == ("cancelled", b"a\n")


async def test_a_call_cancelled_when_it_is_claimed_and_no_more_says_so_and_does_not_run(
    tmp_path: Path, calls: DetachedCalls
) -> None:
    folder = tmp_path / "calls"
    calls._write_job("call.1", job(tmp_path, "touch effect"))
    wanted = (folder / "call.1.job").read_bytes()
    (folder / "call.1.job").unlink()
    os.mkfifo(folder / "call.1.job")  # the runner waits here, its claim made
    told = os.open(folder / "call.1.job", os.O_RDWR)
    runner = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", runner_program.__file__, str(folder), "call.1"
    )
    await until(folder / "call.1.claim")
    assert calls.cancel("call")
    os.write(told, wanted)
    os.close(told)
    assert await runner.wait() == 0
    done = await calls.adopt("call")
    assert isinstance(done, Done)
    assert (done.ended_by, done.exit_code) == ("cancelled", None)
    assert not (tmp_path / "work" / "effect").exists()


async def test_a_call_cancelled_before_it_began_does_not_run(
    tmp_path: Path, calls: DetachedCalls
) -> None:
    assert not calls.cancel("call")
    done = await calls.run(job(tmp_path, "touch effect"))
    assert isinstance(done, Done)
    assert (done.ended_by, done.exit_code) == ("cancelled", None)
    assert not (tmp_path / "work" / "effect").exists()


@pytest.mark.parametrize(
    ("command", "timeout_s", "ended_by"),
    [
        ("sleep 60", 1.0, "timeout"),
        ("tail /dev/zero", 60.0, "memory"),
        ("i=0; while [ $i -lt 9 ]; do head -c 9000000 /dev/zero > f$i; i=$((i+1)); done; sleep 90",
         60.0, "disk"),
    ],
)  # fmt: skip
async def test_a_call_over_its_bounds_is_ended(
    tmp_path: Path, calls: DetachedCalls, command: str, timeout_s: float, ended_by: str
) -> None:
    done = await calls.run(job(tmp_path, command, timeout_s=timeout_s))
    assert isinstance(done, Done)
    assert done.ended_by == ended_by


async def test_output_is_bounded_and_counted(tmp_path: Path, calls: DetachedCalls) -> None:
    done = await calls.run(job(tmp_path, "head -c 40000000 /dev/zero"))
    assert isinstance(done, Done)
    assert done.output_bytes == 40_000_000
    assert len(done.output) == 32 << 20


async def test_forgetting_removes_every_trace(tmp_path: Path, calls: DetachedCalls) -> None:
    await calls.run(job(tmp_path, "true"))
    calls.forget("call")
    assert list((tmp_path / "calls").iterdir()) == []


async def test_runners_outlive_the_starter_that_forked_them(
    tmp_path: Path, sandbox: SandboxReport
) -> None:
    for name in ("calls", "work"):
        (tmp_path / name).mkdir()
    async with Starter(tmp_path / "calls") as starter:
        first = DetachedCalls(tmp_path / "calls", sandbox, starter)
        waiting = asyncio.create_task(
            first.run(job(tmp_path, "until test -e go; do :; done; echo x"))
        )
        await until(tmp_path / "calls" / "call.1.claim")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    (tmp_path / "work" / "go").touch()
    done = await DetachedCalls(tmp_path / "calls", sandbox).adopt("call")
    assert isinstance(done, Done)
    assert done.output == b"x\n"


async def test_without_its_starter_a_call_is_started_by_path(
    tmp_path: Path, sandbox: SandboxReport
) -> None:
    for name in ("calls", "work"):
        (tmp_path / name).mkdir()
    async with Starter(tmp_path / "calls") as starter:
        calls = DetachedCalls(tmp_path / "calls", sandbox, starter)
        assert isinstance(await calls.run(job(tmp_path, "echo x", name="one")), Done)
        starter._process.kill()
        await starter._process.wait()
        done = await calls.run(job(tmp_path, "echo y", name="two"))
        assert isinstance(done, Done)
        assert done.output == b"y\n"
