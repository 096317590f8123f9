"""Sockets and connections: bound safely, bounded in number, closed when a request never comes.

What arrives on a connection is aiohttp's to parse. Here are only the manners it leaves open: a
header that is begun has to end, a connection too many gets an answer before it is closed, and what
is no HTTP gets a problem document like every other mistake.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from appliance.errors import ApplianceError, BadRequest, Conflict, Overloaded

log = logging.getLogger(__name__)

HEADER_S = 5.0
"""From the first byte of a request to the last of its header."""

KEEPALIVE_S = 75.0
"""An open connection without a request, before the first as between two."""

LATE_S = 0.1
"""A stalled loop runs its timers before it reads: one more look, after what lies there was read."""

LINGER_S = 1.0
"""How long a connection too many stays, so that its answer is read."""

CONNECTIONS_MAX = 4096
"""Over all doors. Front ends hold one or two each, a bench a thousand; more are an accident."""

BACKLOG = 1024

Refusal = Callable[[ApplianceError], web.Response]


class GuardedHandler(RequestHandler):
    """aiohttp's connection, closed when a request does not arrive in time."""

    __slots__ = ("_has_begun", "_is_refused", "_server", "_timer")

    def __init__(self, server: GuardedServer, **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server
        self._timer: asyncio.TimerHandle | None = None
        self._has_begun = False
        self._is_refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        most = self._server.connections_max
        if self._server.open_count < most:
            self._server.open_count += 1
            self._wait_for_request(KEEPALIVE_S)
            return
        assert isinstance(transport, asyncio.Transport)
        too_many = Overloaded(f"{most} connections are open", hint="close some", retry_after_s=1.0)
        self._is_refused = True
        transport.write(_raw(self._server.refuse(too_many)))
        transport.write_eof()
        # Closed at once, with a request unread, the kernel would take the answer back.
        asyncio.get_running_loop().call_later(LINGER_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        super().data_received(data)
        if self._current_request is not None or self._messages:
            self._has_begun = False
            self._stop_waiting()
        elif not self._has_begun:
            self._has_begun = True
            self._stop_waiting()
            self._wait_for_request(HEADER_S)

    def connection_lost(self, exc: BaseException | None) -> None:
        if not self._is_refused:
            self._server.open_count -= 1
        self._stop_waiting()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no HTTP gets a problem, too, and neither a traceback nor its headers (which may
        hold a token) in the log."""
        if status >= 500:
            return super().handle_error(request, status, exc, message)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is under way already")
        log.info("a client sent what is no HTTP: %s", type(exc).__name__)
        failure = BadRequest("the request is not well-formed HTTP")
        failure.http_status = status
        response = self._server.refuse(failure)
        response.force_close()
        return response

    def _wait_for_request(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._look_again)

    def _look_again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LATE_S, self._expire)

    def _expire(self) -> None:
        self._timer = None
        if self._current_request is None and self.transport is not None:
            self.transport.abort()

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class GuardedServer(web.Server):
    """Makes guarded connections, and serves no more than `connections_max` at once."""

    def __init__(
        self,
        handler: Any,
        *,
        refuse: Refusal,
        connections_max: int = CONNECTIONS_MAX,
        **options: Any,
    ) -> None:
        super().__init__(handler, keepalive_timeout=KEEPALIVE_S, **options)
        self.refuse = refuse
        self.connections_max = connections_max
        self.open_count = 0

    def __call__(self) -> RequestHandler:
        return GuardedHandler(self, loop=asyncio.get_running_loop(), **self._kwargs)


def _raw(response: web.Response) -> bytes:
    """A response on the wire, for a connection that no request arrived on."""
    body = response.body
    assert isinstance(body, bytes)
    response.headers["Connection"] = "close"
    response.headers["Content-Length"] = str(len(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
    return f"HTTP/1.1 {response.status} {response.reason}\r\n{head}\r\n".encode() + body


def bind_unix(path: Path, mode: int = 0o660) -> socket.socket:
    """A listening-ready unix socket at `path`, of that mode in a folder of mode 0750.

    Raises `Conflict` when somebody answers there, or something that is no socket is in the way:
    what we did not make we do not remove. A dead socket is replaced.
    """
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        pass
    else:
        if not is_socket:
            raise Conflict(
                f"{path} exists and is not a socket", hint="move it away, or set [daemon] socket"
            )
        if _answers(path):
            raise Conflict(
                f"another daemon answers on {path}", hint="appliance status shows it; stop it first"
            )
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o777 & ~mode)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        # The error of a path too long (107 bytes on Linux) has no number and so no `strerror`.
        raise Conflict(
            f"cannot bind {path}: {error.strerror or error}",
            hint="set [daemon] socket to a shorter path"
            if error.errno is None
            else "set [daemon] socket",
        ) from error
    finally:
        os.umask(umask)
    listener.setblocking(False)
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError as error:
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
        return True


def bind_tcp(host: str, port: int) -> socket.socket:
    """A listening-ready TCP socket; raises `Conflict` when the address is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise Conflict(
            f"cannot listen on {host}:{port}: {error.strerror}", hint="choose another [daemon] http"
        ) from error
    listener.setblocking(False)
    return listener
