"""The network backends under every HTTP client the door lends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore2

from appliance.egress.courier.courier import Courier
from appliance.egress.courier.stream import CourierStream
from appliance.egress.reach import Reach, Unreached
from appliance.egress.rules import Target
from appliance.errors import EgressDenied


class _Backend(httpcore2.AsyncNetworkBackend):
    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        raise EgressDenied("the door opens no unix sockets")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Dialler(_Backend):
    """Connections that are the daemon's own."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
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
            try:
                return await self._sockets.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except httpcore2.ConnectTimeout as error:
                raise Unreached(str(error), is_late=True) from error
            except httpcore2.ConnectError as error:
                raise Unreached(str(error)) from error

        with _in_the_librarys_words():
            return await self._reach.first_open(Target("tcp", host.lower(), port), connect)


class CarriedDialler(_Backend):
    """Connections that are handed to the courier as soon as they are open."""

    def __init__(self, reach: Reach, courier: Courier) -> None:
        self._reach = reach
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
        with _in_the_librarys_words():
            target = Target("tcp", host.lower(), port)
            sock, address = await self._reach.open_socket(target, timeout)
        try:
            return CourierStream(self._courier.carry(sock), address)
        except OSError as error:
            raise httpcore2.ConnectError(f"the courier: {error}") from error


@contextmanager
def _in_the_librarys_words() -> Iterator[None]:
    try:
        yield
    except Unreached as error:
        kind = httpcore2.ConnectTimeout if error.is_late else httpcore2.ConnectError
        raise kind(str(error)) from error
