"""Refuses, process-wide, every connection off this machine that the door did not open.

The door's own checks bind those who use the door. A dependency that phones home does not: so the
daemon also installs this guard, in two places because there are two ways to the network. Python's
`socket` module raises audit events (PEP 578) before it connects, sends a datagram or asks a
resolver; libuv, under uvloop, is C and raises none, so the daemon's event loop is a `GuardedLoop`
that asks first. Both ask the same question: is this loopback, or has the door given a pass for
exactly this address (while it connects) or this name (while it resolves)?

What it cannot see: other processes (the sandbox and the unit's `IPAddressDeny` hold those) and C
code of a dependency that opens sockets by itself. It is a second wall, not the first.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvloop

from appliance.egress.rules import is_address, is_loopback_host


class Guard:
    """The passes now valid, and the refusals so far. One per process; `install` arms it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._addresses: Counter[tuple[str, int]] = Counter()
        self._names: Counter[str] = Counter()
        self._is_installed = False
        self.refused = 0
        """Connections and look-ups refused since the start."""

    @property
    def is_installed(self) -> bool:
        return self._is_installed

    def install(self) -> None:
        """Arm it for the rest of the process's life: audit hooks cannot be taken back."""
        if not self._is_installed:
            self._is_installed = True
            sys.addaudithook(self._heard)

    @contextmanager
    def passing(self, address: str, port: int) -> Iterator[None]:
        """Lets one connection to this address be opened."""
        with self._held(self._addresses, (address, port)):
            yield

    @contextmanager
    def resolving(self, name: str) -> Iterator[None]:
        """Lets this name be looked up."""
        with self._held(self._names, name):
            yield

    def check_address(self, host: object, port: object) -> None:
        """Raises `PermissionError` for an address that is neither ours nor passed."""
        host = _text(host)
        if host in ("", "0.0.0.0", "::") or is_loopback_host(host):
            return
        if (host, port) not in self._addresses:
            self._refuse(f"{host} port {port}")

    def check_name(self, host: object) -> None:
        """Raises `PermissionError` for a look-up that would leave the machine."""
        host = _text(host)
        if host in ("", socket.gethostname()) or is_loopback_host(host) or is_address(host):
            return
        if host not in self._names:
            self._refuse(f"the name {host}")

    def _refuse(self, what: str) -> None:
        self.refused += 1
        raise PermissionError(f"egress: nothing opened the door for {what}")

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        match event:
            case "socket.connect" | "socket.sendto" | "socket.sendmsg":
                sock, address = arguments[0], arguments[1]
                if address and sock.family in (socket.AF_INET, socket.AF_INET6):
                    self.check_address(address[0], address[1])
            case "socket.getaddrinfo" | "socket.gethostbyname" | "socket.gethostbyaddr":
                self.check_name(arguments[0])

    @contextmanager
    def _held(self, counter: Counter[Any], key: Any) -> Iterator[None]:
        with self._lock:
            counter[key] += 1
        try:
            yield
        finally:
            with self._lock:
                counter[key] -= 1
                if counter[key] <= 0:
                    del counter[key]


PROCESS_GUARD = Guard()
"""The one of this process: audit hooks are process-wide, and so is this."""


class GuardedLoop(uvloop.Loop):
    """uvloop's loop, which asks the guard before it connects or resolves."""

    async def create_connection(self, *args: Any, **kwargs: Any) -> Any:
        host, port = _host_port(args, kwargs)
        if kwargs.get("sock") is None:
            _check_both(host, port)
        return await super().create_connection(*args, **kwargs)

    async def create_datagram_endpoint(self, *args: Any, **kwargs: Any) -> Any:
        remote = kwargs.get("remote_addr") or (args[2] if len(args) > 2 else None)
        if isinstance(remote, tuple):
            _check_both(remote[0], remote[1])
        return await super().create_datagram_endpoint(*args, **kwargs)

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        if sock.family in (socket.AF_INET, socket.AF_INET6) and PROCESS_GUARD.is_installed:
            PROCESS_GUARD.check_address(address[0], address[1])
        await super().sock_connect(sock, address)

    async def getaddrinfo(self, host: Any, port: Any, **kwargs: Any) -> Any:
        if PROCESS_GUARD.is_installed:
            PROCESS_GUARD.check_name(host)
        return await super().getaddrinfo(host, port, **kwargs)


def guarded_loop() -> uvloop.Loop:
    """For `uvloop.run(..., loop_factory=guarded_loop)`."""
    return GuardedLoop()


def _check_both(host: object, port: object) -> None:
    if host is None or not PROCESS_GUARD.is_installed:
        return
    if is_address(_text(host)):
        PROCESS_GUARD.check_address(host, port)
    else:
        PROCESS_GUARD.check_name(host)


def _host_port(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """`create_connection(factory, host, port)`, however the two are passed."""
    host = args[1] if len(args) > 1 else kwargs.get("host")
    port = args[2] if len(args) > 2 else kwargs.get("port")
    return host, port


def _text(host: object) -> str:
    if host is None:
        return ""
    return host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)
