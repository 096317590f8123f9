"""Opens TCP connections that leave: resolves, checks the address, connects to it.

Resolving and connecting are one step here, so that the address that was checked is the address
that is connected to (no second look-up a rebinding name could answer otherwise).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import TypeVar

from appliance.config.schema import Config
from appliance.egress.guard import Guard
from appliance.egress.rules import Target, address_refusal, is_address
from appliance.errors import EgressDenied

T = TypeVar("T")

RESOLVE_S = 3.0
"""A resolver that has not answered by then is down; the step goes elsewhere."""

ADDRESSES_MAX = 4
"""Addresses of one name that are tried, the resolver's order kept."""


class Unreached(Exception):
    """Nobody answers there; `is_late` when it was waited for."""

    def __init__(self, message: str, *, is_late: bool = False) -> None:
        super().__init__(message)
        self.is_late = is_late


class Reach:
    """Connections to targets. Every method raises `EgressDenied` and `Unreached`."""

    def __init__(self, config: Callable[[], Config], guard: Guard) -> None:
        self._config = config
        self._guard = guard

    async def open_stream(
        self, target: Target, timeout_s: float
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection for what is no HTTP client."""

        async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            try:
                async with asyncio.timeout(timeout_s):
                    return await asyncio.open_connection(address, target.port)
            except TimeoutError as error:
                raise Unreached(f"no answer from {target}", is_late=True) from error
            except OSError as error:
                raise Unreached(f"{target}: {error}") from error

        return await self.first_open(target, connect)

    async def open_socket(
        self, target: Target, timeout_s: float | None
    ) -> tuple[socket.socket, tuple[str, int]]:
        """A connected socket and where it leads, for the courier."""

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
                raise Unreached(f"no answer from {target}", is_late=True) from error
            except OSError as error:
                sock.close()
                raise Unreached(f"{target}: {error}") from error
            except BaseException:
                sock.close()
                raise
            return sock, (address, target.port)

        return await self.first_open(target, connect)

    async def first_open(self, target: Target, connect: Callable[[str], Awaitable[T]]) -> T:
        """The first of the target's addresses that `connect` opens; each is checked before it is
        tried, and `connect` raises `Unreached` for one that does not answer."""
        last: Unreached | None = None
        for address in await self._addresses(target):
            reason = address_refusal(self._config(), target, address)
            if reason is not None:
                raise EgressDenied(reason, hint="[network] in config.toml says what may leave")
            try:
                with self._guard.passing(address, target.port):
                    return await connect(address)
            except Unreached as error:
                last = error
        raise last or Unreached(f"{target.host} has no address")

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
            raise Unreached(f"no answer for the name {target.host}", is_late=True) from error
        except OSError as error:
            raise Unreached(f"the name {target.host}: {error}") from error
        return [str(info[4][0]) for info in found][:ADDRESSES_MAX]
