"""The way out for processes in a sandbox: an HTTP proxy that knows on whose behalf each one asks.

A contained process has a network of its own, empty but for one port, and what it says there is
carried here word for word (`tools/sandbox/bridge.py`). So a shell that may reach a package index
speaks to it with the tools it always uses, and still passes the door: host, label and air gap are
checked, the name is resolved here and the address checked again, the audit has a line for the
connection. Every piece that goes out asks the rules anew, so that a configuration that closes a
host or shuts the air gap also ends connections that are already open.

On a connection comes first the key of a permit, as one line, then one request to a proxy:
`CONNECT host:port`, or the absolute form of plain HTTP. What follows is not looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from appliance.clock import Clock
from appliance.config.schema import Config
from appliance.egress.audit import Audit, Line
from appliance.egress.errand import Errand
from appliance.egress.reach import Reach, Unreached
from appliance.egress.rules import Purpose, Target, refusal, target_of
from appliance.errors import EgressDenied

HEAD_MAX_BYTES = 64 << 10
HEAD_S = 30.0
"""A request that is not whole by then is given up."""
PIECE_BYTES = 64 << 10
CONNECTIONS_MAX = 64
"""Open at once, of one permit."""
REFUSALS_KEPT = 8


@dataclass(slots=True)
class Permit:
    """What one contained process may do. `refusals`: why it was refused, each reason once."""

    purpose: Purpose
    errand: Callable[[], Errand]
    refusals: list[str] = field(default_factory=list)
    connections: set[asyncio.Task[None]] = field(default_factory=set)

    def refused(self, reason: str) -> None:
        if reason not in self.refusals and len(self.refusals) < REFUSALS_KEPT:
            self.refusals.append(reason)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to a proxy. `head` is what a plain HTTP server is to be told; empty for CONNECT."""

    method: str
    target: Target
    head: bytes = b""


class Gate:
    """The proxy, at a bound unix socket. `async with` listens, and removes the socket's file."""

    def __init__(
        self,
        listener: socket.socket,
        config: Callable[[], Config],
        reach: Reach,
        audit: Audit,
        clock: Clock,
    ) -> None:
        self.path = Path(listener.getsockname())
        self._listener = listener
        self._config = config
        self._reach = reach
        self._audit = audit
        self._clock = clock
        self._permits: dict[str, Permit] = {}
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(
            self._serve, sock=self._listener, limit=HEAD_MAX_BYTES
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for permit in self._permits.values():
            await _end(permit)
        self.path.unlink(missing_ok=True)

    @contextlib.asynccontextmanager
    async def admitting(
        self, key: str, purpose: Purpose, errand: Callable[[], Errand]
    ) -> AsyncIterator[Permit]:
        """While inside, connections that give `key` may leave for this purpose, on the errand of
        that moment. What is still open at the end is closed."""
        permit = self._permits[key] = Permit(purpose, errand)
        try:
            yield permit
        finally:
            if self._permits.get(key) is permit:
                del self._permits[key]
            await _end(permit)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        permit: Permit | None = None
        try:
            async with asyncio.timeout(HEAD_S):
                key = (await reader.readline()).decode("ascii", "replace").strip()
                permit = self._permits.get(key)
                if permit is None or len(permit.connections) >= CONNECTIONS_MAX:
                    return
                permit.connections.add(task)
                asked = read_request(await reader.readuntil(b"\r\n\r\n"))
            await self._pass(permit, asked, reader, writer)
        except (asyncio.IncompleteReadError, TimeoutError, ConnectionError):
            return
        except (asyncio.LimitOverrunError, ValueError) as error:
            await _answer(writer, "400 Bad Request", str(error))
        finally:
            if permit is not None:
                permit.connections.discard(task)
            writer.close()

    async def _pass(
        self,
        permit: Permit,
        asked: Asked,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        line = Line(permit.purpose, asked.target, asked.method, permit.errand(), len(asked.head))
        reason = self._refusal(permit, asked.target)
        if reason is not None:
            await self._audit.record("egress.refused", {**line.to_json(), "reason": reason})
            await _answer(writer, "403 Forbidden", reason)
            return
        await self._audit.record("egress.sent", line.to_json())
        started_s = self._clock.monotonic()
        journey = _Journey(len(asked.head))
        try:
            outside = await self._open(asked)
            try:
                if asked.method == "CONNECT":
                    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await self._carry(permit, asked.target, journey, (reader, writer), outside)
            finally:
                outside[1].close()
        except EgressDenied as error:
            permit.refused(error.message)
            journey.status = 403
            await _answer(writer, "403 Forbidden", error.message)
        except Unreached as error:
            journey.status = 502
            await _answer(writer, "502 Bad Gateway", f"{asked.target} cannot be reached: {error}")
        finally:
            spent_ms = int((self._clock.monotonic() - started_s) * 1000)
            await self._audit.record(
                "egress.received",
                {
                    **line.to_json(),
                    "bytes_out": journey.bytes_out,
                    "bytes_in": journey.bytes_in,
                    "status": journey.status,
                    "ms": spent_ms,
                },
            )

    def _refusal(self, permit: Permit, target: Target) -> str | None:
        reason = refusal(self._config(), permit.purpose, target, permit.errand())
        if reason is not None:
            permit.refused(reason)
        return reason

    async def _open(self, asked: Asked) -> _Streams:
        """A connection to the target, its plain request already on the way."""
        network = self._config().network
        if network.proxy:
            streams = await self._reach.open_stream(
                target_of(network.proxy), network.connect_timeout_s
            )
            await _ask_proxy(streams, asked.target, network.connect_timeout_s)
        else:
            streams = await self._reach.open_stream(asked.target, network.connect_timeout_s)
        streams[1].write(asked.head)
        return streams

    async def _carry(
        self,
        permit: Permit,
        target: Target,
        journey: _Journey,
        inside: _Streams,
        outside: _Streams,
    ) -> None:
        """Until the far side has said all it had to say, or the rules change their mind."""

        async def outward() -> None:
            with contextlib.suppress(ConnectionError):
                while piece := await inside[0].read(PIECE_BYTES):
                    reason = self._refusal(permit, target)
                    if reason is not None:
                        outside[1].transport.abort()
                        return
                    journey.bytes_out += len(piece)
                    outside[1].write(piece)
                    await outside[1].drain()
                if outside[1].can_write_eof():
                    outside[1].write_eof()

        sending = asyncio.create_task(outward())
        try:
            with contextlib.suppress(ConnectionError):
                while piece := await outside[0].read(PIECE_BYTES):
                    journey.bytes_in += len(piece)
                    inside[1].write(piece)
                    await inside[1].drain()
        finally:
            sending.cancel()
            await asyncio.wait([sending])


@dataclass(slots=True)
class _Journey:
    bytes_out: int
    bytes_in: int = 0
    status: int = 200


_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def read_request(head: bytes) -> Asked:
    """What a proxy is asked for. Raises `ValueError` with words for the client.

    Of plain HTTP one request is let through and then the connection closes: the next one could
    be for another host, and nobody would look.
    """
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise ValueError("this is a proxy for HTTP/1.1; it was sent something else")
    method, where, version = words
    if method == "CONNECT":
        parts = urlsplit(f"//{where}")
        if not parts.hostname or not parts.port:
            raise ValueError(f"CONNECT {where[:200]} names no host and port")
        return Asked(method, Target("tcp", parts.hostname.lower(), parts.port))
    if not where.lower().startswith("http://"):
        raise ValueError(f"{where[:200]} is no address a proxy can be asked for")
    target = target_of(where)
    parts = urlsplit(where)
    path = parts.path or "/"
    told = [f"{method} {path}{'?' + parts.query if parts.query else ''} {version}"]
    told.append(f"Host: {parts.netloc.rpartition('@')[2]}")
    kept = (line for line in lines[1:] if line and not _is_ours(line))
    told += [*kept, "Connection: close"]
    return Asked(method, target, "\r\n".join(told).encode("latin-1") + b"\r\n\r\n")


def _is_ours(line: str) -> bool:
    name = line.partition(":")[0].strip().lower()
    return name in ("host", "connection", "keep-alive") or name.startswith("proxy-")


async def _ask_proxy(streams: _Streams, target: Target, timeout_s: float) -> None:
    """Have the proxy of `[network]` open the way. Raises `Unreached`."""
    host = f"[{target.host}]" if ":" in target.host else target.host
    streams[1].write(f"CONNECT {host}:{target.port} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    try:
        async with asyncio.timeout(timeout_s):
            head = await streams[0].readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError) as error:
        streams[1].close()
        raise Unreached("the proxy does not answer as one") from error
    status = head.split(b"\r\n", 1)[0].decode("latin-1")
    if " 200" not in status:
        streams[1].close()
        raise Unreached(f"the proxy says: {status[:200]}")


async def _answer(writer: asyncio.StreamWriter, status: str, text: str) -> None:
    body = (text + "\n").encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    with contextlib.suppress(ConnectionError):
        writer.write(head.encode() + body)
        await writer.drain()


async def _end(permit: Permit) -> None:
    open_now = list(permit.connections)
    for task in open_now:
        task.cancel()
    if open_now:
        await asyncio.wait(open_now)
