"""The tools' ways out of the machine, all through egress: pages, MCP servers at a URL, secrets."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from appliance.config.schema import Config
from appliance.egress.door import Egress
from appliance.egress.errand import Errand, on_errand
from appliance.egress.keys import find_key
from appliance.egress.rules import Purpose
from appliance.errors import BadRequest, DeadlineExceeded, EngineError, NotFound
from appliance.tools.ports import Fetched
from appliance.types import Label

if TYPE_CHECKING:
    import httpx2

FETCH = Purpose("tool", "fetch")
USER_AGENT = "appliance"
MCP_READ_TIMEOUT_S = 300.0
"""Silence of an MCP server's stream; it is opened again then. A call has its own, shorter limit."""


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
        lent = await asyncio.to_thread(self._egress.client, FETCH)
        import httpx2

        try:
            async with asyncio.timeout(timeout_s), lent as client:
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
        lent = await asyncio.to_thread(
            self._egress.client, Purpose("mcp", name), read_timeout_s=MCP_READ_TIMEOUT_S
        )
        from appliance.daemon.mcp_http import client_over

        async with lent, client_over(lent, bearer) as client:
            yield client


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
