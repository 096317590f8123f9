"""Which vLLM servers may start at the same time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable


class StartLocks:
    """One start at a time per card: a server measures the free memory while it starts, and two at
    once charge each other's bytes to themselves."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}

    @contextlib.asynccontextmanager
    async def starting(self, cards: Iterable[str]) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as held:
            for card in sorted(cards) or ["cpu"]:
                await held.enter_async_context(self._locks.setdefault(card, asyncio.Lock()))
            yield
