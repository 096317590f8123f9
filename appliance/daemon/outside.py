"""The tools' ways out of the machine, all through egress: pages, MCP servers at a URL, secrets."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from appliance.config.schema import Config
from appliance.egress.door import Egress
from appliance.egress.errand import Errand, current_errand, on_errand
from appliance.egress.keys import find_key
from appliance.egress.rules import Purpose
from appliance.errors import BadRequest, DeadlineExceeded, EngineError, NotFound
from appliance.tools.ports import UNREACHED, Fetched
from appliance.types import Label

FETCH = Purpose("tool", "fetch")
USER_AGENT = "appliance"
MCP_READ_TIMEOUT_S = 300.0
"""Silence of an MCP server's stream; it is opened again then. A call has its own, shorter limit."""

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


class EgressFetcher:
    """`tools.ports.Fetcher`: GET through the door, to the hosts that `[network]` allows."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress

    async def get(self, url: str, label: Label, max_bytes: int, timeout_s: float) -> Fetched:
        """At most `max_bytes` of a page. A redirect is an answer like any other and says where to.

        Raises `BadRequest` for what is no http URL, `EgressDenied`, `DeadlineExceeded`, and
        `EngineError` for a network that fails.
        """
        if not url.lower().startswith(("http://", "https://")):
            raise BadRequest(f"{url[:200]!r} is no http or https address")
        try:
            async with asyncio.timeout(timeout_s), self._egress.client(FETCH) as client:
                with on_errand(Errand(label)):
                    request = client.build_request("GET", url, headers={"User-Agent": USER_AGENT})
                    answer = await client.send(request, stream=True)
                    try:
                        return await _fetched(answer, url, max_bytes)
                    finally:
                        await answer.aclose()
        except TimeoutError as error:
            raise DeadlineExceeded(f"{url[:200]} took over {timeout_s:.0f} s") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise EngineError(f"{url[:200]} cannot be fetched: {error}") from error


class EgressHttp:
    """`tools.ports.HttpDoor`: a client for one MCP server's URL.

    A call's request carries the errand of the call (the SDK hands the sender's context on). What
    a connection says without a call is let out as public only if it is a handshake; anything else
    without an errand is refused at the door, like all that nobody labelled.
    """

    def __init__(self, egress: Egress, config: Callable[[], Config]) -> None:
        self._egress = egress
        self._config = config

    @asynccontextmanager
    async def client(self, url: str, bearer: str) -> AsyncIterator[httpx2.AsyncClient]:
        name = next((name for name, entry in self._config().mcp.items() if entry.url == url), None)
        if name is None:
            raise NotFound(f"no MCP server is configured at {url}", hint="appliance mcp list")
        lent = self._egress.client(Purpose("mcp", name), read_timeout_s=MCP_READ_TIMEOUT_S)
        async with (
            lent,
            httpx2.AsyncClient(
                transport=_Handshaking(lent),
                timeout=lent.timeout,
                headers={
                    "Accept-Encoding": "identity",
                    **({"Authorization": f"Bearer {bearer}"} if bearer else {}),
                },
                follow_redirects=False,
                trust_env=False,
            ) as client,
        ):
            yield client


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


class DaemonSecrets:
    """`tools.ports.Secrets`: a systemd credential of this name, else a variable. Kept nowhere."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._environment = environment

    def get(self, name: str) -> str | None:
        return find_key(self._environment, name, name)


async def _fetched(answer: httpx2.Response, url: str, max_bytes: int) -> Fetched:
    body = bytearray()
    async for part in answer.aiter_bytes():
        body += part
        if len(body) >= max_bytes:
            break
    where = answer.headers.get("location")
    moved = f"{url} → {where} (not followed: ask for that address)" if where else url
    media_type = answer.headers.get("content-type", "").partition(";")[0].strip()
    return Fetched(answer.status_code, media_type, bytes(body[:max_bytes]), moved)


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
