"""The daemon's side of detached calls: starts runners, waits for them, adopts them, ends them.

Files in the calls folder, per call and attempt (`<call_id>.<n>`): `.job` as written here, `.claim`
and `.done` as `runner.py` makes them. A further attempt exists only after somebody decided that
a call whose runner died may run again; `run` never makes one while an earlier one might still
have an effect.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

from appliance.tools import runner, starter
from appliance.tools.sandbox.limits import Limits
from appliance.tools.sandbox.plan import Cage
from appliance.tools.sandbox.report import SandboxReport

ATTEMPTS_MAX = 100
STARTER_TIMEOUT_S = 5.0
RUNNER_GRACE_S = 10.0
"""How much longer than its job a runner may take before it is taken for stuck and ended."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a runner is to do: a program (`argv`), or a function of `tools.files`."""

    call_id: str
    call_hash: str
    cage: Cage
    limits: Limits
    timeout_s: float
    environment: Mapping[str, str]
    argv: tuple[str, ...] = ()
    function: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What a runner reported. `exit_code` is negative for a signal, None if nothing ran.

    `ended_by` is empty for a natural end, else timeout, cancelled, memory, processes, disk or
    output. `output_bytes` counts all there was, `output` holds what was kept.
    """

    call_hash: str
    exit_code: int | None
    ended_by: str
    problem: str
    duration_ms: int
    output_bytes: int
    output: bytes


@dataclass(frozen=True, slots=True)
class Never:
    """No runner has claimed the call: it has not begun."""


@dataclass(frozen=True, slots=True)
class Died:
    """A runner claimed the call and died before it could report."""


Fate: TypeAlias = Done | Never | Died


class Starter:
    """The daemon's side of `starter.py`: one warm process that forks runners. `async with`; exit
    ends it and no runner."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._order = threading.Lock()

    async def __aenter__(self) -> Self:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(STARTER_TIMEOUT_S)
        with theirs:
            self._process = await _start_python(
                starter.__file__, str(self._folder), stdin=theirs.fileno()
            )
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._socket.close()
        try:
            await asyncio.wait_for(self._process.wait(), STARTER_TIMEOUT_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def start(self, name: str) -> int | None:
        """A pidfd of the runner of this job, to be closed; None if it has to be started by path."""
        exchange = asyncio.get_running_loop().run_in_executor(None, self._ask, name)
        try:
            return await asyncio.shield(exchange)
        except asyncio.CancelledError:
            exchange.add_done_callback(_close_result)
            raise

    def _ask(self, name: str) -> int | None:
        with self._order:
            try:
                self._socket.send(name.encode())
                _, fds, _, _ = socket.recv_fds(self._socket, 1, 1)
            except OSError:
                self._socket.close()  # an answer that comes late would be taken for another's
                return None
        return fds[0] if fds else None


class DetachedCalls:
    """One calls folder. Stateless but for the files in it: any daemon may open it at any time."""

    def __init__(
        self, folder: Path, sandbox: SandboxReport, starter: Starter | None = None
    ) -> None:
        self._folder = folder
        self._sandbox = sandbox
        self._starter = starter

    async def run(self, job: Job) -> Fate:
        """Carry out a job, or take part in it if a runner already has.

        Cancelling this leaves the runner running, to be adopted later; `cancel` ends it.
        """
        attempt = await asyncio.to_thread(self._free_attempt, job.call_id)
        if attempt is None:
            return await self.adopt(job.call_id)
        name = f"{job.call_id}.{attempt}"
        await asyncio.to_thread(self._write_job, name, job)
        await self._run_job(name, job.timeout_s + RUNNER_GRACE_S)
        fate = await asyncio.to_thread(self._fate, name)
        if fate is None:  # another runner had claimed it
            return await self.adopt(job.call_id)
        return Died() if isinstance(fate, Never) else fate

    async def _run_job(self, name: str, within_s: float) -> None:
        """Start a runner and wait until it has ended; one that takes too long is ended."""
        pid_fd = None if self._starter is None else await self._starter.start(name)
        if pid_fd is not None:
            try:
                await asyncio.wait_for(_ended(pid_fd), within_s)
            except TimeoutError:
                signal.pidfd_send_signal(pid_fd, signal.SIGKILL)
                await _ended(pid_fd)
            finally:
                os.close(pid_fd)
            return
        process = await _start_python(runner.__file__, str(self._folder), name)
        try:
            await asyncio.wait_for(process.wait(), within_s)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def adopt(self, call_id: str) -> Fate:
        """What became of a call, waiting for its runner if that still runs."""
        name = f"{call_id}.{await asyncio.to_thread(self._last_attempt, call_id)}"
        while (fate := await asyncio.to_thread(self._fate, name)) is None:
            await self._until_exit(name)
        return fate

    def cancel(self, call_id: str) -> bool:
        """Ask the runner of a call to end it; also one that has not begun. Returns whether a
        running one was told. Its `.done` says that it was cancelled."""
        name = f"{call_id}.{self._last_attempt(call_id)}"
        (self._folder / f"{name}.cancel").touch()
        pid_fd = self._open_runner(name)
        if pid_fd is None:
            return False
        try:
            signal.pidfd_send_signal(pid_fd, signal.SIGTERM)
        except ProcessLookupError:
            return False
        finally:
            os.close(pid_fd)
        return True

    def forget(self, call_id: str) -> None:
        """Remove the files of a call whose result is in the journal."""
        for path in self._folder.glob(f"{call_id}.*"):
            path.unlink(missing_ok=True)

    def _free_attempt(self, call_id: str) -> int | None:
        """The number under which a new runner may start; None if an earlier one still counts."""
        last = self._last_attempt(call_id)
        match self._fate(f"{call_id}.{last}"):
            case Never():
                return last
            case Died() if last < ATTEMPTS_MAX:
                return last + 1
        return None

    def _last_attempt(self, call_id: str) -> int:
        attempt = 1
        while attempt < ATTEMPTS_MAX and (self._folder / f"{call_id}.{attempt + 1}.job").exists():
            attempt += 1
        return attempt

    def _fate(self, name: str) -> Fate | None:
        """None while its runner runs. The order matters: done is looked for again after the lock
        was found free, because the runner may have finished between the two."""
        claim = self._folder / f"{name}.claim"
        if (done := self._read_done(name)) is not None:
            return done
        try:
            fd = os.open(claim, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return Never()
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        finally:
            os.close(fd)
        return self._read_done(name) or Died()

    def _read_done(self, name: str) -> Done | None:
        try:
            data = (self._folder / f"{name}.done").read_bytes()
        except FileNotFoundError:
            return None
        head, _, output = data.partition(b"\n")
        fields = json.loads(head)
        del fields["call_id"]
        return Done(**fields, output=output)

    def _write_job(self, name: str, job: Job) -> None:
        body = {
            "call_id": job.call_id,
            "call_hash": job.call_hash,
            "cage": job.cage._asdict(),
            "limits": job.limits,
            "timeout_s": job.timeout_s,
            "environment": dict(job.environment),
            "argv": job.argv,
            "function": job.function,
            "mode": self._sandbox.mode,
            "bwrap": self._sandbox.bwrap,
            "disable_userns": self._sandbox.disables_userns,
        }
        fd, draft = tempfile.mkstemp(dir=self._folder, prefix=f"{name}.job.")
        with os.fdopen(fd, "w") as file:
            json.dump(body, file)
        os.rename(draft, self._folder / f"{name}.job")

    def _open_runner(self, name: str) -> int | None:
        """A pidfd of the live runner. The number in the claim may have been given to somebody
        else since; holding the pidfd first and finding the claim still locked after shows that
        it has not."""
        try:
            pid = int((self._folder / f"{name}.claim").read_text())
            pid_fd = os.pidfd_open(pid)
        except (FileNotFoundError, ValueError, ProcessLookupError):
            return None
        if self._fate(name) is None:
            return pid_fd
        os.close(pid_fd)
        return None

    async def _until_exit(self, name: str) -> None:
        """Returns when the runner has ended; at once if it already has."""
        pid_fd = await asyncio.to_thread(self._open_runner, name)
        if pid_fd is None:
            return
        try:
            await _ended(pid_fd)
        finally:
            os.close(pid_fd)


async def _ended(pid_fd: int) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pid_fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pid_fd)


async def _start_python(
    program: str, *arguments: str, stdin: int = asyncio.subprocess.DEVNULL
) -> asyncio.subprocess.Process:
    """One of our programs, in a session of its own, with nothing of our surroundings."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-S",
        program,
        *arguments,
        stdin=stdin,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
        env={"LANG": "C.UTF-8"},
        cwd="/",
    )


def _close_result(exchange: asyncio.Future[int | None]) -> None:
    if not exchange.cancelled() and (pid_fd := exchange.result()) is not None:
        os.close(pid_fd)
