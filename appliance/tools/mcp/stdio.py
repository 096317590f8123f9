"""A server's program, caged, and its standard input and output as a bounded stream of messages.

The SDK's own transport reads lines of any length and messages at any rate, and passes on the
environment. A server is somebody else's code: a line is at most `LINE_MAX_BYTES`, a second brings
at most `LINES_PER_S_MAX`, and who exceeds it is cut off. `closed` is set when the program is gone
or was cut off, with the reason in `ending`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from appliance.tools.sandbox import cage as entering
from appliance.tools.sandbox import limits
from appliance.tools.sandbox.plan import Cage
from appliance.tools.sandbox.report import SandboxReport

LINE_MAX_BYTES = 8 << 20
LINES_PER_S_MAX = 2_000
"""An honest server reports progress some times a second."""
STDERR_LINES = 20
BYTES_PER_S_MAX = 32 << 20
"""Taking a message apart holds the loop up, by about 10 ms a MiB."""
STOP_WAIT_S = 0.5
KILL_WAIT_S = 5.0
KILL_ROUNDS = 3
"""What is killed may just have forked."""

Incoming = SessionMessage | Exception


@dataclass(frozen=True, slots=True)
class Launch:
    """How one server is started. `environment` is all its program is told."""

    name: str
    argv: tuple[str, ...]
    cage: Cage
    environment: dict[str, str]
    limits: limits.Limits
    sandbox: SandboxReport
    is_caged: bool


@dataclass(slots=True)
class Pipe:
    """A running server. Owned by `open_pipe`; others read."""

    incoming: MemoryObjectReceiveStream[Incoming]
    outgoing: MemoryObjectSendStream[SessionMessage]
    closed: asyncio.Event
    pid: int
    ending: str = ""
    stderr: deque[str] = field(default_factory=lambda: deque(maxlen=STDERR_LINES))


@contextlib.asynccontextmanager
async def open_pipe(launch: Launch) -> AsyncIterator[Pipe]:
    """Start the server; on exit end it and its process group, and wait until it is gone."""
    group = await asyncio.to_thread(
        limits.make_group, f"mcp-{launch.name}-{os.getpid()}-{time.monotonic_ns()}", launch.limits
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-S",
        entering.__file__,
        _spec(launch, group),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        limit=LINE_MAX_BYTES,
        env={"LANG": "C.UTF-8"},
        cwd="/",
    )
    to_session, incoming = anyio.create_memory_object_stream[Incoming](16)
    outgoing, from_session = anyio.create_memory_object_stream[SessionMessage](16)
    pipe = Pipe(incoming, outgoing, asyncio.Event(), process.pid)
    try:
        async with asyncio.TaskGroup() as tasks:
            pumps = [
                tasks.create_task(_read(process, pipe, to_session)),
                tasks.create_task(_write(process, from_session)),
                tasks.create_task(_listen(process, pipe)),
            ]
            try:
                yield pipe
            finally:
                await _stop(process, group)
                for pump in pumps:
                    pump.cancel()
    finally:
        for stream in (to_session, incoming, outgoing, from_session):
            stream.close()
        if group is not None:
            await asyncio.to_thread(group.remove)


def _spec(launch: Launch, group: limits.Group | None) -> str:
    return json.dumps(
        {
            "mode": launch.sandbox.mode if launch.is_caged else "none",
            "bwrap": launch.sandbox.bwrap,
            "disable_userns": launch.sandbox.disables_userns,
            "cage": launch.cage._asdict(),
            "argv": launch.argv,
            "environment": launch.environment,
            "limits": launch.limits,
            "groups": [] if group is None else group.folders,
        }
    )


async def _read(
    process: asyncio.subprocess.Process, pipe: Pipe, to_session: MemoryObjectSendStream[Incoming]
) -> None:
    assert process.stdout is not None
    window_s, lines, seen_bytes = time.monotonic(), 0, 0
    try:
        while line := await process.stdout.readline():
            now_s = time.monotonic()
            if now_s - window_s >= 1:
                window_s, lines, seen_bytes = now_s, 0, 0
            lines, seen_bytes = lines + 1, seen_bytes + len(line)
            if lines > LINES_PER_S_MAX or seen_bytes > BYTES_PER_S_MAX:
                pipe.ending = f"it sent {lines} messages of {seen_bytes} bytes within a second"
                break
            if line.strip():
                await to_session.send(_parse(line))
    except ValueError:
        pipe.ending = f"it sent a message of more than {LINE_MAX_BYTES} bytes"
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pipe.ending = pipe.ending or "the session was closed"
    pipe.ending = pipe.ending or "its program ended"
    pipe.closed.set()
    to_session.close()
    # A pipe that nobody reads never shows its end, and asyncio waits for that end before it
    # believes that the process is gone.
    while await process.stdout.read(1 << 16):
        continue


def _parse(line: bytes) -> Incoming:
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
    except ValueError as error:
        return error


async def _write(
    process: asyncio.subprocess.Process, from_session: MemoryObjectReceiveStream[SessionMessage]
) -> None:
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError):  # `_read` sees the end of the program and says so
        async for item in from_session:
            text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
            process.stdin.write(text.encode() + b"\n")
            await process.stdin.drain()


async def _listen(process: asyncio.subprocess.Process, pipe: Pipe) -> None:
    """Keep the last lines a server wrote to its standard error, for diagnosis."""
    assert process.stderr is not None
    while piece := await process.stderr.read(4096):
        for line in piece.decode("utf-8", "replace").splitlines():
            pipe.stderr.append(line[:500])


async def _stop(process: asyncio.subprocess.Process, group: limits.Group | None) -> None:
    """Close its input, wait a moment, then kill it and what it started: its process group (and
    with it its namespace), what is below it, and what is in its cgroup, whatever session that is
    in. One that is left and holds the pipes would be waited for in vain."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), STOP_WAIT_S)
    except TimeoutError:
        pass
    finally:
        below = await asyncio.to_thread(limits.descendants, process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for _ in range(KILL_ROUNDS):
            below |= group.pids() if group is not None else set()
            for pid in below:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            below = set()
        await asyncio.wait_for(process.wait(), KILL_WAIT_S)
