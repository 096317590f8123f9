"""The doors: the unix socket and, if configured, loopback TCP, each with its own limits.

aiohttp has no deadline for headers or bodies, serves any Host, and waits for a reader that has
stopped reading (all measured). So here: a header must be complete within `HEADER_S`, a body keeps
coming or is refused, Host and Origin are checked before anything else on TCP, and a follower that
does not read is dropped. A handler never sees a request that is not authenticated, bounded and
parsed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from pydantic import BaseModel, ValidationError

from appliance.api.endpoint import Call, Endpoint, Problem
from appliance.api.listen import BACKLOG, GuardedServer, bind_tcp, bind_unix
from appliance.api.peer import Peer, Role, Tokens, unix_peer
from appliance.config.machine import AccessConfig
from appliance.errors import ApplianceError, BadRequest, Conflict, Refused

log = logging.getLogger(__name__)

BODY_IDLE_S = 10.0
HEADER_MAX_BYTES = 16 * 1024
SOCKET_LOOK_S = 2.0

SHUTDOWN_S = 5.0


class PayloadTooLarge(BadRequest):
    code = "payload_too_large"
    http_status = 413


class Misdirected(Refused):
    """A Host or Origin this server does not answer to: DNS rebinding, or a web page."""

    code = "misdirected"
    http_status = 421


class Server:
    """Serves a list of endpoints on one or two doors. `async with`: bound on enter, gone on exit.

    `access` is read at each request, so a reload changes roles at once.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        socket_path: Path,
        http: tuple[str, int] | None,
        http_hosts: Sequence[str],
        tokens: Tokens | None,
        access: Callable[[], AccessConfig],
        body_max_bytes: Callable[[], int],
    ) -> None:
        self._endpoints = endpoints
        self._socket_path = socket_path
        self._http = http
        self._http_hosts = frozenset(http_hosts)
        self._tokens = tokens
        self._access = access
        self._body_max_bytes = body_max_bytes
        self._runner: web.ServerRunner | None = None
        self._router = web.UrlDispatcher()
        self.http_port: int | None = None
        for endpoint in endpoints:
            self._router.add_route(endpoint.method, endpoint.path, _as_handler(endpoint))

    async def __aenter__(self) -> Self:
        server = GuardedServer(
            self._serve,
            refuse=problem_response,
            max_line_size=HEADER_MAX_BYTES,
            max_field_size=HEADER_MAX_BYTES,
            access_log=None,
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=SHUTDOWN_S)
        await self._runner.setup()
        await self._listen(bind_unix(self._socket_path))
        if self._http is not None:
            await self._listen(bind_tcp(*self._http))
        return self

    async def _listen(self, listener: socket.socket) -> None:
        assert self._runner is not None
        await web.SockSite(self._runner, listener, backlog=BACKLOG).start()

    async def stay_reachable(self) -> None:
        """Bind the socket anew whenever its file is gone (a cleaner of temporary folders, a hand
        that slipped): a daemon nobody can reach could not even be asked to stop. What somebody
        else put there is left alone."""
        while True:
            await asyncio.sleep(SOCKET_LOOK_S)
            if os.path.lexists(self._socket_path):
                continue
            try:
                await self._listen(bind_unix(self._socket_path))
            except (Conflict, OSError) as error:
                log.error("%s is gone and cannot be bound again: %s", self._socket_path, error)
            else:
                log.warning("%s was removed; it is bound again", self._socket_path)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()
        with suppress(FileNotFoundError):
            self._socket_path.unlink()

    # --- one request ----------------------------------------------------------------------------

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._answer(request)
        except web.HTTPException as error:
            return problem_response(_of_http(error))
        except ApplianceError as error:
            return problem_response(error)
        except (ConnectionResetError, asyncio.CancelledError):
            raise
        except Exception as error:
            log.exception("%s %s failed", request.method, request.path)
            return problem_response(
                ApplianceError(
                    f"unexpected failure: {error!r}", hint="the daemon's log has the traceback"
                )
            )

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        peer = self._authenticate(request)
        match = await self._router.resolve(request)  # type: ignore[arg-type]
        if match.http_exception is not None:
            raise match.http_exception
        endpoint: Endpoint = match.handler.endpoint  # type: ignore[attr-defined]
        if peer.role < endpoint.role:
            raise Refused(
                f"{endpoint.method} {endpoint.path} needs the role {endpoint.role.word}, "
                f"you are {peer.role.word}",
                hint="an admin can add you to [access] in config.toml",
            )
        body = await self._body(request, endpoint)
        query = _parse_query(request, endpoint)
        reply = await endpoint.handler(Call(request, peer, dict(match), body, query))
        if isinstance(reply, web.StreamResponse):
            return reply
        return web.Response(
            status=endpoint.status, body=reply.model_dump_json().encode(),
            content_type="application/json",
        )  # fmt: skip

    def _authenticate(self, request: web.BaseRequest) -> Peer:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError
        connection: socket.socket = transport.get_extra_info("socket")
        if connection.family == socket.AF_UNIX:
            return unix_peer(connection, self._access())
        self._check_host(request, connection.getsockname()[1])
        if self._tokens is None:
            raise Refused("the TCP side is off")
        if request.path in OPEN_PATHS:
            return Peer(-1, -1, (), 0, Role.NOBODY)
        header = request.headers.get("Authorization") or request.headers.get("x-api-key") or ""
        return self._tokens.peer(header)

    def _check_host(self, request: web.BaseRequest, port: int) -> None:
        allowed = {f"{host}:{port}" for host in ("127.0.0.1", "localhost", "[::1]")}
        allowed |= self._http_hosts
        host = request.headers.get("Host", "")
        if host not in allowed or len(request.headers.getall("Host", ())) != 1:
            raise Misdirected(f"this server does not answer to host {host!r}")
        origin = request.headers.get("Origin")
        if origin is not None and origin not in {f"http://{name}" for name in allowed}:
            raise Misdirected(f"requests from {origin!r} are refused")
        if request.headers.get("Sec-Fetch-Site") == "cross-site":
            raise Misdirected("requests from other sites are refused")

    async def _body(self, request: web.BaseRequest, endpoint: Endpoint) -> BaseModel | None:
        if endpoint.body is None:
            return None
        if request.content_type != "application/json":
            raise BadRequest(
                f"content type is {request.content_type!r}", hint="send application/json"
            )
        content = await read_body(request, self._body_max_bytes())
        try:
            return endpoint.body.model_validate_json(content or b"{}")
        except ValidationError as error:
            raise _invalid("body", error) from error


OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Answered on TCP without a token, and saying nothing but yes or no."""


async def read_body(request: web.BaseRequest, max_bytes: int) -> bytes:
    """The whole body. Refuses more than `max_bytes` before reading it, and one that stalls."""
    too_large = PayloadTooLarge(
        f"the body is larger than {max_bytes} bytes", hint="[daemon] body_max_bytes bounds it"
    )
    if (request.content_length or 0) > max_bytes:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    while True:
        try:
            async with asyncio.timeout(BODY_IDLE_S):
                chunk = await request.content.readany()
        except TimeoutError as error:
            raise BadRequest(f"the body stopped coming for {BODY_IDLE_S:g} s") from error
        if not chunk:
            return b"".join(chunks)
        size += len(chunk)
        if size > max_bytes:
            raise too_large
        chunks.append(chunk)


def problem_response(error: ApplianceError) -> web.Response:
    """An error as problem+json with the right status and `Retry-After`."""
    problem = Problem(
        type=f"urn:appliance:{error.code}",
        title=error.code.replace("_", " "),
        status=error.http_status,
        detail=error.message,
        **{key: value for key, value in error.to_json().items() if key != "message"},
    )
    response = web.Response(
        status=error.http_status,
        body=problem.model_dump_json(exclude_none=True).encode(),
        content_type="application/problem+json",
    )
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if error.http_status == PayloadTooLarge.http_status:
        response.force_close()
    return response


def _as_handler(endpoint: Endpoint) -> Any:
    async def unused(request: web.Request) -> web.StreamResponse:
        raise AssertionError("requests are dispatched by Server._answer")

    unused.endpoint = endpoint  # type: ignore[attr-defined]
    return unused


def _parse_query(request: web.BaseRequest, endpoint: Endpoint) -> BaseModel | None:
    if endpoint.query is None:
        return None
    try:
        return endpoint.query.model_validate_strings(dict(request.query))
    except ValidationError as error:
        raise _invalid("query", error) from error


def _invalid(where: str, error: ValidationError) -> BadRequest:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    name = f"{where} key {key!r}" if key else where
    return BadRequest(f"{name}: {first['msg']}", hint="GET /api/openapi.json describes it")


def _of_http(error: web.HTTPException) -> ApplianceError:
    failure = BadRequest(error.reason or error.text or str(error.status))
    if error.status == 404:
        failure = BadRequest("there is no such path", hint="GET /api/openapi.json lists them")
    failure.http_status = error.status
    failure.code = {404: "not_found", 405: "method_not_allowed"}.get(error.status, "bad_request")
    return failure
