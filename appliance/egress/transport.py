"""The transport in every client the door lends: asks the rules, sends, and keeps the audit."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore2
import httpx2

from appliance.clock import Clock
from appliance.config.schema import Config
from appliance.egress.audit import Audit, Line
from appliance.egress.courier.courier import IDLE_S, Courier
from appliance.egress.courier.replay import replayed
from appliance.egress.courier.stream import Exchange, exchanging
from appliance.egress.courier.tape import Tape, header_of
from appliance.egress.dial import CarriedDialler, Dialler
from appliance.egress.errand import Errand, current_errand
from appliance.egress.reach import Reach
from appliance.egress.rules import Purpose, Target, refusal
from appliance.errors import EgressDenied

CONNECTIONS_MAX = 64
"""Of one client. Engines bound their calls by slots; this bounds a bug."""

RESENDS_MAX = 2
"""Over another connection, of a request that had not left: the pool passes over what it sees
closed, so that more than one in a row is rare."""


class DoorTransport(httpx2.AsyncBaseTransport):
    """One client's way out. `egress.sent` is recorded before the first byte leaves, with what is
    sent; `egress.received` when the answer ends, however it ends; `egress.refused` instead of
    both. `egress.adopted` instead of `egress.sent` where an earlier daemon has sent the very same
    request of the turn: its answer is on tape, and is not asked for again. Raises `EgressDenied`
    for what the rules refuse, httpx2's errors for the rest."""

    def __init__(
        self,
        purpose: Purpose,
        config: Callable[[], Config],
        reach: Reach,
        audit: Audit,
        clock: Clock,
        on_answer: Callable[[Purpose, httpx2.Headers, int], None],
        courier: Courier | None = None,
    ) -> None:
        self._purpose = purpose
        self._config = config
        self._audit = audit
        self._clock = clock
        self._on_answer = on_answer
        self._courier = courier
        proxy = config().network.proxy
        self._pool = _pool(proxy, Dialler(reach))
        self._carried = None if courier is None else _pool(proxy, CarriedDialler(reach, courier))

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        target = _target(request.url)
        errand = current_errand()
        body = await request.aread()
        line = Line(self._purpose, target, request.method, errand, len(body))
        reason = refusal(self._config(), self._purpose, target, errand)
        if reason is not None:
            await self._audit.record("egress.refused", {**line.to_json(), "reason": reason})
            raise EgressDenied(reason, hint="[network] in config.toml says what may leave")
        exchange = _exchange(self._purpose, request, body, errand)
        if exchange is not None and self._courier is not None:
            tape = self._courier.adopt(exchange.header["turn"], exchange.header["match"])
            if tape is not None:
                return await self._adopted(tape, line)
        await self._audit.record("egress.sent", line.to_json())
        started_s = self._clock.monotonic()
        pool = self._pool
        if exchange is not None and self._carried is not None:
            pool = self._carried
        try:
            answer = await self._sent(pool, _core_request(request, body), exchange)
        except BaseException:
            await self._closed(line, started_s, 0, 0)
            raise
        headers = httpx2.Headers(answer.headers)
        self._on_answer(self._purpose, headers, answer.status)

        async def closed(bytes_in: int) -> None:
            await self._closed(line, started_s, answer.status, bytes_in)

        return httpx2.Response(
            status_code=answer.status,
            headers=answer.headers,
            stream=_CountedStream(answer.stream, closed),
            extensions=answer.extensions,
        )

    async def _sent(
        self,
        pool: httpcore2.AsyncConnectionPool,
        request: httpcore2.Request,
        exchange: Exchange | None,
    ) -> httpcore2.Response:
        """The head of the answer. A kept connection may prove to be closed by its server; what was
        to be taped and has no tape has not left then, and goes over another."""
        for resends in range(RESENDS_MAX + 1):
            try:
                with _httpx_errors(), exchanging(exchange and exchange.anew()):
                    return await pool.handle_async_request(request)
            except (httpx2.ReadError, httpx2.RemoteProtocolError):
                if resends == RESENDS_MAX or exchange is None or self._may_have_left(exchange):
                    raise
        raise AssertionError("unreachable")

    def _may_have_left(self, exchange: Exchange) -> bool:
        return self._courier is None or self._courier.has_tape(exchange.header["name"])

    async def aclose(self) -> None:
        await self._pool.aclose()
        if self._carried is not None:
            await self._carried.aclose()

    async def _adopted(self, tape: Tape, line: Line) -> httpx2.Response:
        started_s = self._clock.monotonic()
        await self._audit.record("egress.adopted", {**line.to_json(), "tape": tape.name})
        answer = await replayed(tape)

        async def closed(bytes_in: int) -> None:
            await self._closed(line, started_s, answer.status_code, bytes_in)

        return httpx2.Response(
            answer.status_code,
            headers=answer.headers,
            stream=_CountedStream(answer.stream, closed),
            extensions={"adopted": tape.name},
        )

    async def _closed(self, line: Line, started_s: float, status: int, bytes_in: int) -> None:
        await self._audit.record(
            "egress.received",
            {
                **line.to_json(),
                "status": status,
                "bytes_in": bytes_in,
                "ms": int((self._clock.monotonic() - started_s) * 1000),
            },
        )


class _CountedStream(httpx2.AsyncByteStream):
    """A response body that counts itself and says so once, when it is closed."""

    def __init__(self, inner: Any, closed: Callable[[int], Awaitable[None]]) -> None:
        self._inner = inner
        self._closed = closed
        self._bytes = 0
        self._is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _httpx_errors():
            async for part in self._inner:
                self._bytes += len(part)
                yield part

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            if not self._is_closed:
                self._is_closed = True
                await self._closed(self._bytes)


@contextmanager
def _httpx_errors() -> Iterator[None]:
    """httpcore2's errors as httpx2's of the same name, which is what callers and SDKs catch."""
    try:
        yield
    except Exception as error:
        kind = getattr(httpx2, type(error).__name__, None)
        if type(error).__module__ == "httpcore2" and kind is not None:
            raise kind(str(error)) from error
        raise


def _pool(proxy: str, dialler: httpcore2.AsyncNetworkBackend) -> httpcore2.AsyncConnectionPool:
    """A pool that dials through the door. Certificates: the system's store, nothing from the
    environment."""
    tls = ssl.create_default_context()
    if proxy:
        return httpcore2.AsyncHTTPProxy(
            proxy,
            ssl_context=tls,
            max_connections=CONNECTIONS_MAX,
            keepalive_expiry=IDLE_S,
            network_backend=dialler,
        )
    return httpcore2.AsyncConnectionPool(
        ssl_context=tls,
        max_connections=CONNECTIONS_MAX,
        keepalive_expiry=IDLE_S,
        network_backend=dialler,
    )


def _core_request(request: httpx2.Request, body: bytes) -> httpcore2.Request:
    url = request.url
    return httpcore2.Request(
        request.method,
        httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
        headers=request.headers.raw,
        content=body,
        extensions=request.extensions,
    )


def _exchange(
    purpose: Purpose, request: httpx2.Request, body: bytes, errand: Errand | None
) -> Exchange | None:
    """The request as the courier wants it; None where its answer is not to be taped."""
    if errand is None or not errand.tape:
        return None
    match = hashlib.sha256(f"{request.method} {request.url}\n".encode() + body).hexdigest()
    header = header_of(errand.tape, errand.turn_id, purpose.name, match)
    return Exchange(header, len(body))


def _target(url: httpx2.URL) -> Target:
    port = url.port or (443 if url.scheme == "https" else 80)
    return Target(url.scheme, url.host.lower(), port)
