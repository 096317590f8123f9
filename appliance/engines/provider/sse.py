"""Server-sent events out of bytes, as the WHATWG specification reads them, within a bound.

Lines end at LF, CR LF or CR alone, wherever the network cuts them; a byte order mark, comments and
fields other than `event` and `data` are passed over; an event that no empty line ends is none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

import httpx2

from appliance.errors import ApplianceError

STREAM_MAX_BYTES = 64 << 20
"""Of one answer, framing included: a thousand times the longest, and a bound on a mad server."""


ENDING_S = 0.2
"""From the last word of an answer to the end of its stream: they mostly come together."""


class TooLong(ValueError):
    """The stream does not end."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    kind: str
    data: str


async def server_events(parts: AsyncIterator[bytes]) -> AsyncIterator[ServerEvent]:
    """The events in order. Raises `UnicodeDecodeError`, `TooLong`, and what `parts` raises."""
    kind, data = "", list[str]()
    async for line in _lines(parts):
        if not line:
            if data:
                yield ServerEvent(kind, "\n".join(data))
            kind, data = "", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            kind = value


async def run_out(rest: AsyncIterator[object]) -> None:
    """Read what is left of a stream that has said all: only a connection whose answer was read to
    its end can carry the next call. One that stays open is not waited for, nor is it an error."""
    with suppress(TimeoutError, OSError, ValueError, httpx2.HTTPError, ApplianceError):
        async with asyncio.timeout(ENDING_S):
            async for _ in rest:
                pass


async def _lines(parts: AsyncIterator[bytes]) -> AsyncIterator[str]:
    held: list[bytes] = []
    total, is_first, after_cr = 0, True, False
    async for part in parts:
        total += len(part)
        if total > STREAM_MAX_BYTES:
            raise TooLong(f"it does not end within {STREAM_MAX_BYTES} bytes")
        if after_cr and part:
            part, after_cr = part.removeprefix(b"\n"), False
        for piece in part.splitlines(keepends=True):  # of bytes: at LF, CR LF and CR alone
            body = piece.rstrip(b"\r\n")
            held.append(body)
            if len(body) == len(piece):
                continue
            line, held = b"".join(held).decode(), []
            yield line.removeprefix("\ufeff") if is_first else line
            is_first = False
        after_cr = part.endswith(b"\r")
