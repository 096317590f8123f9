"""Opens the TCP connections of the door's clients: resolves, checks the address, connects to it.

Resolving and connecting are one step here, so that the address that was checked is the address
that is connected to (no second look-up a rebinding name could answer otherwise).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import httpcore2

from appliance.config.schema import Config
from appliance.egress.courier.courier import Courier
from appliance.egress.guard import Guard
from appliance.egress.rules import Target, address_refusal, is_address
from appliance.errors import EgressDenied

T = TypeVar("T")

RESOLVE_S = 3.0
"""A resolver that has not answered by then is down; the step goes elsewhere."""

ADDRESSES_MAX = 4
"""Addresses of one name that are tried, the resolver's order kept."""


class Dialler(httpcore2.AsyncNetworkBackend):
    """The network backend under every client the door lends."""

    def __init__(self, config: Callable[[], Config], guard: Guard) -> None:
        self._config = config
        self._guard = guard
        self._sockets = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Raises `EgressDenied`, `httpcore2.ConnectError`, `httpcore2.ConnectTimeout`."""

        async def connect(address: str) -> httpcore2.AsyncNetworkStream:
            return await self._sockets.connect_tcp(
                address, port, timeout, local_address, socket_options
            )

        return await self._first_open(Target("tcp", host.lower(), port), connect)

    async def open_stream(
        self, target: Target, timeout_s: float
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection for what is no HTTP client. Raises as `connect_tcp`."""

        async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            try:
                async with asyncio.timeout(timeout_s):
                    return await asyncio.open_connection(address, target.port)
            except TimeoutError as error:
                raise httpcore2.ConnectTimeout(f"no answer from {target}") from error
            except OSError as error:
                raise httpcore2.ConnectError(f"{target}: {error}") from error

        return await self._first_open(target, connect)

    async def open_socket(
        self, target: Target, timeout_s: float | None
    ) -> tuple[socket.socket, tuple[str, int]]:
        """A connected socket and where it leads, for the courier. Raises as `connect_tcp`."""

        async def connect(address: str) -> tuple[socket.socket, tuple[str, int]]:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            try:
                async with asyncio.timeout(timeout_s):
                    await asyncio.get_running_loop().sock_connect(sock, (address, target.port))
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except TimeoutError as error:
                sock.close()
                raise httpcore2.ConnectTimeout(f"no answer from {target}") from error
            except OSError as error:
                sock.close()
                raise httpcore2.ConnectError(f"{target}: {error}") from error
            except BaseException:
                sock.close()
                raise
            return sock, (address, target.port)

        return await self._first_open(target, connect)

    async def _first_open(self, target: Target, connect: Callable[[str], Awaitable[T]]) -> T:
        """The first of the target's addresses that opens; each is checked before it is tried."""
        last: Exception | None = None
        for address in await self._addresses(target):
            reason = address_refusal(self._config(), target, address)
            if reason is not None:
                raise EgressDenied(reason, hint="[network] in config.toml says what may leave")
            try:
                with self._guard.passing(address, target.port):
                    return await connect(address)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                last = error
        raise last or httpcore2.ConnectError(f"{target.host} has no address")

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        raise EgressDenied("the door opens no unix sockets")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _addresses(self, target: Target) -> list[str]:
        if is_address(target.host):
            return [target.host]
        if target.host == "localhost":
            return ["127.0.0.1", "::1"]
        if self._config().network.air_gap:
            raise EgressDenied(f"air gap: {target.host} is not looked up")
        try:
            with self._guard.resolving(target.host):
                async with asyncio.timeout(RESOLVE_S):
                    found = await asyncio.get_running_loop().getaddrinfo(
                        target.host, target.port, type=socket.SOCK_STREAM
                    )
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout(f"no answer for the name {target.host}") from error
        except OSError as error:
            raise httpcore2.ConnectError(f"the name {target.host}: {error}") from error
        return [str(info[4][0]) for info in found][:ADDRESSES_MAX]


class CarriedDialler(httpcore2.AsyncNetworkBackend):
    """The same, with every connection handed to the courier as soon as it is open."""

    def __init__(self, dialler: Dialler, courier: Courier) -> None:
        self._dialler = dialler
        self._courier = courier

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Raises as `Dialler.connect_tcp`."""
        target = Target("tcp", host.lower(), port)
        sock, address = await self._dialler.open_socket(target, timeout)
        try:
            return self._courier.carry(sock, address)
        except OSError as error:
            raise httpcore2.ConnectError(f"the courier: {error}") from error

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        raise EgressDenied("the door opens no unix sockets")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
