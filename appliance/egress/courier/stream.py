"""A connection that the courier holds, as the HTTP library wants one."""

from __future__ import annotations

import asyncio
import json
import select
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import httpcore2

FRAME_MAX_BYTES = 1 << 31

CLOSE_S = 1.0
"""The courier's last frame is small; a courier that does not take it is stuck or gone."""


@dataclass(slots=True)
class Exchange:
    """A request that is to be sent whole, and its answer taped. `header` is the tape's."""

    header: dict[str, Any]
    body_bytes: int
    held: bytearray = field(default_factory=bytearray)

    def anew(self) -> Exchange:
        """The same, nothing of it sent."""
        return Exchange(self.header, self.body_bytes)

    def is_whole(self) -> bool:
        head = self.held.find(b"\r\n\r\n")
        return head >= 0 and len(self.held) - head - 4 >= self.body_bytes


_current: ContextVar[Exchange | None] = ContextVar("courier_exchange", default=None)


@contextmanager
def exchanging(exchange: Exchange | None) -> Iterator[None]:
    """The one request sent inside is this exchange; None: a request like any other. A context
    variable, as for errands: between the door's transport and its connections stands a pool that
    hands nothing through."""
    token = _current.set(exchange)
    try:
        yield
    finally:
        _current.reset(token)


class CourierStream(httpcore2.AsyncNetworkStream):
    """Our end of a carried connection's pair. What the courier sends is what the server sent."""

    def __init__(self, link: socket.socket, address: tuple[str, int]) -> None:
        self._link = link
        self._address = address
        self._is_closed = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        loop = asyncio.get_running_loop()
        async with _within(timeout, httpcore2.ReadTimeout, httpcore2.ReadError):
            return await loop.sock_recv(self._link, max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        exchange = _current.get()
        if exchange is None or buffer.startswith(b"CONNECT "):
            await self._send(b"D", buffer, timeout)
            return
        exchange.held += buffer
        if exchange.is_whole():
            request, exchange.held = bytes(exchange.held), bytearray()
            line = json.dumps(exchange.header).encode() + b"\n"
            await self._send(b"X", line + request, timeout)

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """The courier makes its own context, of the same defaults: a context cannot be sent."""
        loop = asyncio.get_running_loop()
        await self._send(b"T", (server_hostname or "").encode("ascii"), timeout)
        async with _within(timeout, httpcore2.ConnectTimeout, httpcore2.ConnectError):
            if await loop.sock_recv(self._link, 1) != b"+":
                raise httpcore2.ConnectError(f"no TLS with {server_hostname}")
        return self

    async def aclose(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        try:
            await self._send(b"C", b"", CLOSE_S)
        except (httpcore2.WriteError, httpcore2.WriteTimeout):
            pass  # it is gone already
        finally:
            self._link.close()

    def get_extra_info(self, info: str) -> Any:
        match info:
            case "is_readable":
                return self._is_closed or _is_readable(self._link)
            case "server_addr":
                return self._address
            case "socket":
                return self._link
        return None

    async def _send(self, kind: bytes, payload: bytes, timeout: float | None) -> None:
        assert len(payload) < FRAME_MAX_BYTES, "requests are bounded far below"
        frame = kind + len(payload).to_bytes(4, "big") + payload
        async with _within(timeout, httpcore2.WriteTimeout, httpcore2.WriteError):
            await asyncio.get_running_loop().sock_sendall(self._link, frame)


def _is_readable(link: socket.socket) -> bool:
    waiting = select.poll()  # `select` knows the first 1,024 descriptors only
    waiting.register(link, select.POLLIN)
    return bool(waiting.poll(0))


@asynccontextmanager
async def _within(
    timeout: float | None, late: type[Exception], broken: type[Exception]
) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError as error:
        raise late("no answer in time") from error
    except OSError as error:
        raise broken(str(error)) from error
