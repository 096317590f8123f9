"""Server-sent events: one JSON object an event, heartbeats, and a deadline for slow readers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, suppress
from typing import Any

from aiohttp import web

WRITE_S = 15.0
"""A reader that takes nothing for this long is gone; its place in the hub is freed."""

HEARTBEAT_S = 15.0
"""Between two events a comment line keeps proxies and clients from giving up."""


async def stream_events(
    request: web.BaseRequest, items: AsyncIterator[Mapping[str, Any]]
) -> web.StreamResponse:
    """Send items as `event`/`id`/`data` until they end, the client goes, or stops reading.

    `id` is the journal position, so that `Last-Event-ID` resumes where a client was cut.
    """
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
    )
    await response.prepare(request)
    async with aclosing(_with_heartbeats(items)) as lines:
        async for line in lines:
            try:
                async with asyncio.timeout(WRITE_S):
                    await response.write(line)
            except (TimeoutError, ConnectionError):
                if request.transport is not None:
                    request.transport.abort()
                return response
    with suppress(ConnectionError):  # it may have gone after the last event
        await response.write_eof()
    return response


def encode_event(item: Mapping[str, Any]) -> bytes:
    """One event as the bytes of the stream."""
    lines = [f"event: {item['type']}"]
    if "seq" in item:
        lines.append(f"id: {item['seq']}")
    lines.append(f"data: {json.dumps(item, ensure_ascii=False, separators=(',', ':'))}")
    return ("\n".join(lines) + "\n\n").encode()


async def _with_heartbeats(items: AsyncIterator[Mapping[str, Any]]) -> AsyncGenerator[bytes, None]:
    iterator = aiter(items)
    coming = asyncio.ensure_future(anext(iterator))
    try:
        while True:
            done, _ = await asyncio.wait({coming}, timeout=HEARTBEAT_S)
            if not done:
                yield b": still here\n\n"
                continue
            try:
                item = coming.result()
            except StopAsyncIteration:
                return
            yield encode_event(item)
            coming = asyncio.ensure_future(anext(iterator))
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
        if hasattr(iterator, "aclose"):
            await iterator.aclose()
