"""Server-sent events: one JSON object an event, heartbeats, and a deadline for slow readers.

A stream sends hundreds of events a second beside a model that needs every core, so events that are
there at once cost one write, and none a task or timer of its own. One watcher a stream looks after
what is rare: a quiet stream gets a heartbeat, and a reader that takes nothing is cut off.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from aiohttp import web

WRITE_S = 15.0
"""A reader that takes nothing for this long is gone; its place in the hub is freed."""

WRITE_BYTES = 1 << 16
"""Events joined into one write: enough for all that a live turn says at once, while a long history
read back neither lies in memory twice nor makes one reader's deadline count for all of it."""

HEARTBEAT_S = 15.0
"""Between two events a comment line keeps proxies and clients from giving up."""

_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


async def stream_events(
    request: web.BaseRequest, batches: AsyncIterator[Sequence[Mapping[str, Any]]]
) -> web.StreamResponse:
    """Send items as `event`/`id`/`data` until they end, the client goes, or stops reading.

    `id` is the journal position, so that `Last-Event-ID` resumes where a client was cut.
    """
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
    )
    await response.prepare(request)
    line = _Line(response)
    patience = asyncio.timeout(None)
    watching = asyncio.ensure_future(line.watch(patience))
    try:
        async with patience:
            async for items in batches:
                for data in _pieces(items):
                    await line.write(data)
            await response.write_eof()
    except (TimeoutError, ConnectionError) as error:
        if isinstance(error, TimeoutError) and not patience.expired():
            raise
        if request.transport is not None:
            request.transport.abort()
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        if hasattr(batches, "aclose"):
            await batches.aclose()
    return response


def encode_event(item: Mapping[str, Any]) -> bytes:
    """One event as the bytes of the stream."""
    position = f"id: {item['seq']}\n" if "seq" in item else ""
    return f"event: {item['type']}\n{position}data: {_to_json(item)}\n\n".encode()


def _pieces(items: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
    """The bytes of these events in as few writes as `WRITE_BYTES` allows."""
    joined: list[bytes] = []
    size = 0
    for item in items:
        joined.append(encode_event(item))
        size += len(joined[-1])
        if size >= WRITE_BYTES:
            yield b"".join(joined)
            joined, size = [], 0
    if joined:
        yield b"".join(joined)


class _Line:
    """One response being written: since when a write waits, and when the last one was done."""

    def __init__(self, response: web.StreamResponse) -> None:
        self._response = response
        self._now = asyncio.get_running_loop().time
        self._done_s = self._now()
        self._began_s: float | None = None

    async def write(self, data: bytes) -> None:
        """Raises `ConnectionError` when the reader is gone."""
        self._began_s = self._now()
        await self._response.write(data)
        self._began_s, self._done_s = None, self._now()

    async def watch(self, patience: asyncio.Timeout) -> None:
        """Until cancelled: beats when quiet. Ends `patience`, and itself, when nobody reads."""
        while True:
            now = self._now()
            if self._began_s is not None:
                if now >= self._began_s + WRITE_S:
                    break
                due = self._began_s + WRITE_S
            elif now >= self._done_s + HEARTBEAT_S:
                try:
                    async with asyncio.timeout(WRITE_S):
                        await self._response.write(b": still here\n\n")
                except (TimeoutError, ConnectionError):
                    break
                self._done_s = due = self._now()
            else:
                due = self._done_s + HEARTBEAT_S
            await asyncio.sleep(max(due - now, 0.001))
        patience.reschedule(self._now())
