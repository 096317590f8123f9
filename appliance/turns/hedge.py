"""A second request when the first is slow to start: the first to speak wins, the other is ended.

Off by default (`[routing.retry] hedge`), and only for what leaves the machine: it buys a short tail
of waiting with money. How long is slow is learnt from each model's own first words; a second
request takes from the retry budget of the provider, so that an outage is not answered with twice
the requests. What the loser generated is billed like everything that was cancelled.

Each request runs in a task of its own from its first to its last item: HTTP clients bind their
timeouts to the task that opened them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing

from appliance.types import Completion, Delta, Progress

Item = Delta | Completion
Stream = AsyncGenerator[Item, None]

UNKNOWN_SLOW_S = 5.0
"""Slow, while too little was measured."""

SAMPLES_MIN, SAMPLES_MAX = 20, 200
SLOW_QUANTILE = 0.95
SLOW_MIN_S = 0.2


class FirstWords:
    """How long each model took to its first item, of late."""

    def __init__(self) -> None:
        self._seconds: dict[str, deque[float]] = {}

    def took(self, model: str, seconds: float) -> None:
        self._seconds.setdefault(model, deque(maxlen=SAMPLES_MAX)).append(seconds)

    async def timed(self, model: str, stream: Stream) -> Stream:
        """The same stream, its first item timed."""
        began_s = time.monotonic()
        async with aclosing(stream) as items:
            async for item in items:
                if began_s and not isinstance(item, Progress):
                    self.took(model, time.monotonic() - began_s)
                    began_s = 0.0
                yield item

    def slow_s(self, model: str) -> float:
        """Seconds after which a request is slower to start than 95 of 100 before it."""
        return slow_s(self._seconds.get(model, ()))


def slow_s(seconds: Sequence[float]) -> float:
    if len(seconds) < SAMPLES_MIN:
        return UNKNOWN_SLOW_S
    return max(sorted(seconds)[int(SLOW_QUANTILE * len(seconds))], SLOW_MIN_S)


async def first_to_speak(
    open_stream: Callable[[int], Stream], patience_s: float, may_hedge: Callable[[], bool]
) -> Stream:
    """The items of one of two streams: `open_stream(0)`, or, when that says nothing for
    `patience_s` and `may_hedge` agrees, whichever of it and `open_stream(1)` speaks first.

    Raises what the winner raises; what both raised if neither spoke, the first one's.
    """
    pumps = [_Pump(open_stream(0))]
    try:
        await asyncio.wait({pumps[0].spoke}, timeout=patience_s)
        if not pumps[0].spoke.done() and may_hedge():
            pumps.append(_Pump(open_stream(1)))
        winner = await _winner(pumps)
        for pump in pumps:
            if pump is not winner:
                await pump.end()
        async for item in winner.items():
            yield item
    finally:
        for pump in pumps:
            await pump.end()


async def _winner(pumps: Sequence[_Pump]) -> _Pump:
    silent = list(pumps)
    while silent:
        await asyncio.wait({pump.spoke for pump in silent}, return_when=asyncio.FIRST_COMPLETED)
        for pump in [pump for pump in silent if pump.spoke.done()]:
            if pump.spoke.result():
                return pump
            silent.remove(pump)
    return pumps[0]


class _Pump:
    """Reads a stream in a task of its own. `spoke` turns true with the first item, false if the
    stream ended or failed before one."""

    def __init__(self, stream: Stream) -> None:
        self.spoke: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._queue: asyncio.Queue[Item | None] = asyncio.Queue()
        self._error: Exception | None = None
        self._task = asyncio.create_task(self._read(stream))

    async def _read(self, stream: Stream) -> None:
        try:
            async with aclosing(stream) as items:
                async for item in items:
                    if not isinstance(item, Progress):
                        self._say(True)
                    self._queue.put_nowait(item)
        except Exception as error:
            self._error = error
        finally:
            self._say(False)
            self._queue.put_nowait(None)

    def _say(self, has_item: bool) -> None:
        if not self.spoke.done():
            self.spoke.set_result(has_item)

    async def items(self) -> AsyncIterator[Item]:
        while (item := await self._queue.get()) is not None:
            yield item
        if self._error is not None:
            raise self._error

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
