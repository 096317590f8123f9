"""The detached runner: one process that carries out one call and outlives the daemon.

    python -I -S runner.py <calls folder> <name>

The daemon wrote `<name>.job`. Exactly one runner may carry it out, whoever starts how many:

1. It makes a file, takes `flock(LOCK_EX)` on it, and *links* it to `<name>.claim`. The link fails
   if there is one already (exit 3), and a claim is therefore locked from the instant it exists:
   a claim that is not locked means that its runner is dead, with no moment of uncertainty.
2. It runs the job in its sandbox, output through a pipe, bounded in time, bytes and resources.
3. It writes `<name>.tmp`, fsyncs, renames to `<name>.done`. A daemon, the one that started it or
   the next one, takes that.

So a daemon finds one of four: no claim (the call never began), a locked claim (running: wait),
`.done` (take it), an unlocked claim without `.done` (the runner died inside: in doubt).

SIGTERM, or a file `<name>.cancel` found at the start, ends the call and says so in `.done`. From
before its claim on a runner does not die of SIGTERM: what never ran would look as if in doubt.

It imports little, by design: starting must cost milliseconds, and it must not need the daemon's
packages to be whole.
"""

import errno
import fcntl
import json
import os
import select
import signal
import sys
import time
from typing import Any

if __name__ == "__main__":  # run by path: make our package importable, and nothing else
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from appliance.tools.confine import Outside, Workspace
from appliance.tools.sandbox import cage, landlock, limits

ALREADY_CLAIMED = 3
OUTPUT_MAX_BYTES = 32 << 20
"""Output kept of one call. More is read and dropped, so that the tool is not blocked by a full
pipe; past `FLOOD_BYTES` it is taken for a runaway and ended."""
FLOOD_BYTES = 1 << 30
WATCH_S = 0.1
DRAIN_S = 0.2
"""Time for output still in the pipe when the tool itself has ended."""


def main(folder: str, name: str) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until `_Call` hears it
    lock = _claim(folder, name)
    if lock is None:
        return ALREADY_CLAIMED
    with open(os.path.join(folder, f"{name}.job"), "rb") as file:
        job = json.load(file)
    call = _Call(job, is_cancelled=os.path.exists(os.path.join(folder, f"{name}.cancel")))
    header, output = call.carry_out()
    _finish(folder, name, header, output)
    return 0


def _claim(folder: str, name: str) -> int | None:
    draft = os.path.join(folder, f"{name}.{os.getpid()}.draft")
    fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.write(fd, b"%d\n" % os.getpid())
    try:
        os.link(draft, os.path.join(folder, f"{name}.claim"))
    except FileExistsError:
        return None
    finally:
        os.unlink(draft)
    return fd


def _finish(folder: str, name: str, header: dict[str, Any], output: bytes) -> None:
    """The header as one line of JSON, then the output as it came."""
    draft = os.path.join(folder, f"{name}.tmp")
    with open(draft, "wb") as file:
        file.write(json.dumps(header).encode() + b"\n" + output)
        file.flush()
        os.fsync(file.fileno())
    os.rename(draft, os.path.join(folder, f"{name}.done"))


class _Call:
    """One job and the process that carries it out."""

    def __init__(self, job: dict[str, Any], is_cancelled: bool) -> None:
        self._job = job
        self._limits = limits.Limits(*job["limits"])
        self._cage = cage.cage_from(job["cage"])
        self._group: limits.Group | None = None
        self._ended_by = "cancelled" if is_cancelled else ""
        self._output = bytearray()
        self._output_bytes = 0
        self._started = time.monotonic()
        self._disk_free = _free_bytes(self._cage.workspace)

    def carry_out(self) -> tuple[dict[str, Any], bytes]:
        status: int | None = None
        problem = ""
        signal.signal(signal.SIGTERM, self._cancel)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        if not self._ended_by:
            try:
                status = self._run()
            except (OSError, Outside) as error:
                problem = f"the call could not be started: {error}"
        header = {
            "call_id": self._job["call_id"],
            "call_hash": self._job["call_hash"],
            "exit_code": None if status is None else os.waitstatus_to_exitcode(status),
            "ended_by": self._ended_by,
            "problem": problem,
            "duration_ms": int((time.monotonic() - self._started) * 1000),
            "output_bytes": self._output_bytes,
        }
        return header, bytes(self._output)

    def _run(self) -> int:
        landlock.adopt_orphans()
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, ignore_but_wake)
        self._group = limits.make_group(f"call-{os.getpid()}", self._limits)
        out_read, out_write = os.pipe2(os.O_CLOEXEC)
        try:
            child = os.fork()
            if child == 0:
                self._become_tool(out_write)
            os.close(out_write)
            os.set_blocking(out_read, False)
            return self._attend(child, out_read, wake_read)
        finally:
            if self._group is not None:
                self._group.remove()

    def _attend(self, child: int, out_read: int, wake_read: int) -> int:
        """Until the tool has ended and everything it started is gone; returns its wait status."""
        deadline = self._started + self._job["timeout_s"]
        status: int | None = None
        poll = select.poll()
        poll.register(out_read, select.POLLIN)
        poll.register(wake_read, select.POLLIN)
        while status is None:
            poll.poll(WATCH_S * 1000)
            drain(wake_read)
            if not self._read_output(out_read):
                poll.modify(out_read, 0)
            if not self._ended_by:
                self._ended_by = self._overrun(child, deadline)
            if self._ended_by:
                self._kill_all(child)
            pid, found = os.waitpid(child, os.WNOHANG)
            status = found if pid else None
        end = time.monotonic() + DRAIN_S
        self._kill_all(child)
        while self._read_output(out_read) and time.monotonic() < end:
            poll.poll(5)
            drain(wake_read)
        return status

    def _overrun(self, child: int, deadline: float) -> str:
        """Which bound the call is over, or the empty text."""
        if time.monotonic() > deadline:
            return "timeout"
        if self._output_bytes > FLOOD_BYTES:
            return "output"
        if self._group is None:
            over = limits.excess({child, *limits.descendants(child)}, self._limits)
            if over:
                return over
        elif self._group.out_of_memory_kills():
            return "memory"
        written = self._disk_free - _free_bytes(self._cage.workspace)
        if written > self._limits.file_bytes and (
            _folder_bytes(self._cage.workspace) > self._limits.file_bytes
        ):
            return "disk"
        return ""

    def _read_output(self, fd: int) -> bool:
        """Take what is there; False at the end of the pipe."""
        for _ in range(64):
            try:
                piece = os.read(fd, 1 << 16)
            except BlockingIOError:
                return True
            if not piece:
                return False
            self._output_bytes += len(piece)
            self._output += piece[: max(OUTPUT_MAX_BYTES - len(self._output), 0)]
        return True

    def _kill_all(self, child: int) -> None:
        """The tool and all it started, also what ran away into sessions of its own: as their
        subreaper we find them below us. Repeated, because a killed parent may just have forked."""
        for _ in range(20):
            pids = limits.descendants(os.getpid())
            if self._group is not None:
                pids |= self._group.pids()
            for pid in sorted(pids, key=lambda pid: pid != child):  # a shell tells of its dead
                _send(pid, signal.SIGKILL)
            others = pids - {child}
            if not others:
                return
            for pid in others:
                _reap(pid)

    def _cancel(self, *_: object) -> None:
        self._ended_by = self._ended_by or "cancelled"

    def _become_tool(self, out_write: int) -> None:
        """In the child: never returns."""
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            landlock.die_with_parent(signal.SIGKILL)
            os.setsid()
            stdin = os.open("/dev/null", os.O_RDONLY)
            for target, source in ((0, stdin), (1, out_write), (2, out_write)):
                os.dup2(source, target, inheritable=True)
            if self._group is not None:
                self._group.enter()
            limits.set_rlimits(self._limits, self._group is not None)
            os.umask(0o022)
            if self._job["function"]:
                self._call_function(self._job["function"])
            cage.become(self._job, self._cage)
        except BaseException as error:  # the wall of the child: its parent reads this as output
            os.write(2, f"the sandbox could not be entered: {error}\n".encode())
        os._exit(126)

    def _call_function(self, function: dict[str, Any]) -> None:
        """A file tool, in this process, which first gives up everything but the workspace."""
        from appliance.tools import files

        allowed = self._cage
        with Workspace(allowed.workspace, allowed.read_only, allowed.hidden) as workspace:
            if self._job["mode"] != "none" and landlock.abi():
                landlock.restrict([landlock.Rule(workspace.fd, True)])
            try:
                said = getattr(files, function["name"])(workspace, **function["arguments"])
                code = 0
            except files.FileProblem as problem:
                said, code = str(problem), 1
        os.write(1, said.encode("utf-8", "replace"))
        os._exit(code)


def _free_bytes(path: str) -> int:
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize


def _folder_bytes(path: str) -> int:
    """What a folder takes on the disk. One that is closed to us, or so deep that no path reaches
    its end, hides what is in it, and counts as more than any bound."""
    total = 0
    pending = [path]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                listed = list(entries)
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.EACCES):
                return sys.maxsize
            continue  # gone since it was listed
        for entry in listed:
            try:
                total += entry.stat(follow_symlinks=False).st_blocks * 512
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    return sys.maxsize
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
    return total


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        return


def drain(fd: int) -> None:
    try:
        os.read(fd, 4096)
    except BlockingIOError:
        return


def ignore_but_wake(*_: object) -> None:
    """SIGCHLD needs a handler for the wake-up descriptor to be written."""


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2]))
