"""The HTTP client of an MCP server: handshakes have an errand of their own, answers a bound."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2

from appliance.egress.errand import Errand, current_errand, on_errand
from appliance.tools.ports import UNREACHED
from appliance.types import Label

MCP_ANSWER_MAX_BYTES = 8 << 20
"""Of one answer, and of a second of a stream: what a line over stdio may have. The SDK reads an
answer whole, and bounds a stream's events alone."""

MCP_LINES_PER_S_MAX = 10_000
"""Of a stream: about 3,000 messages, as many as one over stdio may send."""

HANDSHAKES = frozenset(
    {"initialize", "notifications/initialized", "notifications/cancelled", "ping", "tools/list",
     "server/discover"}
)  # fmt: skip
"""What a connection says for itself. It carries nothing of anybody, so it is public."""


def client_over(lent: httpx2.AsyncClient, bearer: str) -> httpx2.AsyncClient:
    """A client that sends through the one the door lent, with this bearer token if there is one."""
    return httpx2.AsyncClient(
        transport=_Handshaking(lent),
        timeout=lent.timeout,
        headers={
            "Accept-Encoding": "identity",
            **({"Authorization": f"Bearer {bearer}"} if bearer else {}),
        },
        follow_redirects=False,
        trust_env=False,
    )


class _Handshaking(httpx2.AsyncBaseTransport):
    """Gives the errand of a handshake to requests that are one and have none, and an answer to
    those that reach nobody: the SDK's stream would not survive the exception."""

    def __init__(self, lent: httpx2.AsyncClient) -> None:
        self._lent = lent

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            if current_errand() is not None or not _is_handshake(
                await request.aread(), request.method
            ):
                return _bounded(await self._lent.send(request, stream=True))
            with on_errand(Errand(Label.PUBLIC)):
                return _bounded(await self._lent.send(request, stream=True))
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            reason = f"{request.url.host} cannot be reached: {str(error) or type(error).__name__}"
            told = reason.encode("ascii", "replace").decode()
            return httpx2.Response(502, headers={UNREACHED: told}, request=request)


def _bounded(answer: httpx2.Response) -> httpx2.Response:
    """The same answer, cut off where it is too much. Packed ones are not read at all: a few bytes
    of them may be gigabytes."""
    if answer.headers.get("content-encoding", "identity") != "identity":
        return httpx2.Response(502, headers={"reason": "a packed answer"}, stream=answer.stream)
    streams = answer.headers.get("content-type", "").startswith("text/event-stream")
    return httpx2.Response(
        answer.status_code,
        headers=answer.headers,
        stream=_Bounded(answer.stream, a_second=streams),
        extensions=answer.extensions,
    )


class _Bounded(httpx2.AsyncByteStream):
    """A body of at most `MCP_ANSWER_MAX_BYTES` in all, or in each second."""

    def __init__(self, inner: Any, a_second: bool) -> None:
        self._inner = inner
        self._a_second = a_second

    async def __aiter__(self) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        began_s, seen_bytes, seen_lines = loop.time(), 0, 0
        async for piece in self._inner:
            if self._a_second and loop.time() - began_s >= 1:
                began_s, seen_bytes, seen_lines = loop.time(), 0, 0
            seen_bytes += len(piece)
            seen_lines += piece.count(b"\n") if self._a_second else 0
            if seen_bytes > MCP_ANSWER_MAX_BYTES or seen_lines > MCP_LINES_PER_S_MAX:
                raise httpx2.ReadError("it sent more than an honest server does")
            yield piece

    async def aclose(self) -> None:
        await self._inner.aclose()


def _is_handshake(body: bytes, method: str) -> bool:
    """Whether a request to an MCP server carries nothing but the protocol's own. GET opens the
    server's stream, DELETE ends the session; both have no body."""
    if method in ("GET", "DELETE"):
        return not body
    try:
        said = json.loads(body)
    except ValueError:
        return False
    return isinstance(said, dict) and said.get("method") in HANDSHAKES
