"""Talks to the daemon over its unix socket. The only file of the CLI that opens a connection."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from appliance.errors import ApplianceError, DaemonUnreachable

CONNECT_S = 5.0


class RemoteProblem(ApplianceError):
    """An error the daemon answered with; `code` and `hint` are the daemon's."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(
            str(problem.get("detail", f"the daemon answered {status}")),
            hint=str(problem.get("hint", "")),
            retry_after_s=problem.get("retry_after_s"),
            details=dict(problem.get("details", {})),
        )
        self.code = str(problem.get("code", "internal"))
        self.http_status = status
        self.retryable = bool(problem.get("retryable", False))


class Client:
    """One connection pool to one daemon. `async with`."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            "http://appliance",
            connector=aiohttp.UnixConnector(str(self._socket)),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def get(self, path: str, **query: Any) -> Any:
        return await self._request("GET", path, query=query)

    async def post(self, path: str, body: Mapping[str, Any] | None = None, **headers: str) -> Any:
        return await self._request("POST", path, body=body, headers=headers)

    async def put(self, path: str, body: Mapping[str, Any]) -> Any:
        return await self._request("PUT", path, body=body)

    async def follow(self, turn: str, after: int = 0) -> AsyncIterator[dict[str, Any]]:
        """Events and deltas of a turn until it ends. Raises `DaemonUnreachable` if cut."""
        assert self._session is not None
        try:
            async with self._session.get(
                f"/api/turns/{turn}/events", params={"after": after}
            ) as response:
                await _raise_for(response)
                async for line in _lines(response):
                    if line.startswith(b"data: "):
                        yield json.loads(line[6:])
        except aiohttp.ClientError as error:
            raise self._unreachable(error) from error

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        assert self._session is not None
        params = {key: str(value) for key, value in (query or {}).items() if value is not None}
        try:
            async with self._session.request(
                method, path, params=params, json=body, headers=headers
            ) as response:
                await _raise_for(response)
                return await response.json()
        except aiohttp.ClientError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> DaemonUnreachable:
        return DaemonUnreachable(
            f"no daemon answers on {self._socket}: {error}",
            hint="start it with `appliance serve`, or name its folder with --home",
        )


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of any length: aiohttp's own iteration gives up at half a megabyte."""
    parts: list[bytes] = []
    async for chunk in response.content.iter_any():
        *ended, rest = chunk.split(b"\n")
        for end in ended:
            yield b"".join((*parts, end))
            parts.clear()
        parts.append(rest)


async def _raise_for(response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        return
    try:
        problem = await response.json(content_type=None)
    except ValueError:
        problem = {"detail": (await response.text())[:500]}
    raise RemoteProblem(response.status, problem if isinstance(problem, dict) else {})
