"""How long a server may take for one call, and what it asks of us meanwhile.

Seconds in which the server waits for a person or for a model are ours, not its: a question that is
answered tomorrow does not make it slow. So the clock of a call stands still while it asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class Patience:
    """`async with`: the body has `seconds`, pauses not counted; then `TimeoutError`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._left_s = seconds
        self._pauses = 0
        self._bound: asyncio.Timeout | None = None

    async def __aenter__(self) -> Self:
        self._bound = asyncio.timeout(self._left_s)
        await self._bound.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        bound, self._bound = self._bound, None
        assert bound is not None
        await bound.__aexit__(kind, error, trace)

    def pause(self) -> None:
        """Stop the clock until as many `resume`s have followed."""
        self._pauses += 1
        if self._bound is None or self._pauses > 1 or self._bound.expired():
            return
        when = self._bound.when()
        assert when is not None, "one pause alone takes the bound away"
        self._left_s = max(when - asyncio.get_running_loop().time(), 0.0)
        self._bound.reschedule(None)

    def resume(self) -> None:
        self._pauses -= 1
        if self._bound is not None and self._pauses == 0 and not self._bound.expired():
            self._bound.reschedule(asyncio.get_running_loop().time() + self._left_s)


class Asides:
    """What a server has asked for in the course of one call: ended with the call."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do this for the server while the call's clock stands still."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        self._patience.pause()
        try:
            return await task
        finally:
            self._patience.resume()
            self._tasks.discard(task)
            task.cancel()

    async def end(self) -> None:
        """Give up what is still being done; returns when it is over."""
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))
