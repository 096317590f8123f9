"""A tape as the HTTP answer it is."""

from __future__ import annotations

from collections.abc import AsyncIterator

import h11
import httpx2

from appliance.egress.courier.tape import Tape


async def replayed(tape: Tape) -> httpx2.Response:
    """The answer as it came, and while it comes. Raises `httpx2.RemoteProtocolError` where it
    ends before its head does; its body raises that for an early end."""
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="POST", target="/", headers=[("host", "tape")]))
    parser.send(h11.EndOfMessage())
    events = _events(tape, parser)
    async for event in events:
        if isinstance(event, h11.Response):
            return httpx2.Response(
                event.status_code, headers=event.headers.raw_items(), stream=_Body(events)
            )
    raise httpx2.RemoteProtocolError("the answer on tape has no head")


async def _events(tape: Tape, parser: h11.Connection) -> AsyncIterator[h11.Event]:
    try:
        async for piece in tape.pieces():
            parser.receive_data(piece)
            while isinstance(event := parser.next_event(), h11.Event):
                yield event
                if isinstance(event, h11.EndOfMessage):
                    return
        parser.receive_data(b"")
        while isinstance(event := parser.next_event(), h11.Event):
            yield event
            if isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                return
    except h11.RemoteProtocolError as error:
        raise httpx2.RemoteProtocolError(str(error)) from error


class _Body(httpx2.AsyncByteStream):
    def __init__(self, events: AsyncIterator[h11.Event]) -> None:
        self._events = events

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for event in self._events:
            if isinstance(event, h11.Data):
                yield bytes(event.data)
