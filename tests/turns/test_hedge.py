"""The faster of two streams: who speaks first is heard to the end, the other is ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from appliance.errors import EngineError
from appliance.turns.hedge import SLOW_MIN_S, UNKNOWN_SLOW_S, Item, first_to_speak, slow_s
from appliance.types import TextDelta

LONG_S = 600.0


class Streams:
    """Two streams that say what they are told to, when they are told to."""

    def __init__(self) -> None:
        self.go = (asyncio.Event(), asyncio.Event())
        self.fails: set[int] = set()
        self.opened: list[int] = []
        self.ended: list[int] = []

    async def open(self, number: int) -> AsyncGenerator[Item, None]:
        self.opened.append(number)
        try:
            await self.go[number].wait()
            if number in self.fails:
                raise EngineError(f"stream {number} failed")
            for word in ("a", "b", "c"):
                yield TextDelta(f"{number}{word}")
        finally:
            self.ended.append(number)


async def heard(streams: Streams, patience_s: float, may: bool = True) -> list[str]:
    async with aclosing(first_to_speak(streams.open, patience_s, lambda: may)) as items:
        return [item.text async for item in items if isinstance(item, TextDelta)]


async def test_one_that_speaks_in_time_is_alone() -> None:
    streams = Streams()
    streams.go[0].set()
    assert await heard(streams, LONG_S) == ["0a", "0b", "0c"]
    assert streams.opened == streams.ended == [0]


@pytest.mark.parametrize("winner", [0, 1])
async def test_the_first_to_speak_is_heard_and_the_other_is_ended(winner: int) -> None:
    streams = Streams()
    listening = asyncio.create_task(heard(streams, 0.0))
    while streams.opened != [0, 1]:
        await asyncio.sleep(0)
    streams.go[winner].set()
    assert await listening == [f"{winner}a", f"{winner}b", f"{winner}c"]
    assert sorted(streams.ended) == [0, 1]


async def test_a_failure_of_one_leaves_the_other_to_speak() -> None:
    streams = Streams()
    streams.fails = {0}
    listening = asyncio.create_task(heard(streams, 0.0))
    while streams.opened != [0, 1]:
        await asyncio.sleep(0)
    streams.go[0].set()
    while streams.ended != [0]:
        await asyncio.sleep(0)
    streams.go[1].set()
    assert await listening == ["1a", "1b", "1c"]


async def test_without_leave_there_is_no_second_and_both_failing_is_the_firsts_failure() -> None:
    streams = Streams()
    streams.fails = {0, 1}
    streams.go[0].set()
    with pytest.raises(EngineError, match="stream 0"):
        await heard(streams, 0.0, may=False)
    assert streams.opened == [0]
    streams = Streams()
    streams.fails = {0, 1}
    listening = asyncio.create_task(heard(streams, 0.0))
    while streams.opened != [0, 1]:
        await asyncio.sleep(0)
    streams.go[1].set()
    streams.go[0].set()
    with pytest.raises(EngineError, match="stream 0"):
        await listening


async def test_a_listener_that_leaves_ends_both() -> None:
    streams = Streams()
    listening = asyncio.create_task(heard(streams, 0.0))
    while streams.opened != [0, 1]:
        await asyncio.sleep(0)
    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening
    assert sorted(streams.ended) == [0, 1]


def test_slow_is_what_five_of_a_hundred_are() -> None:
    assert slow_s([1.0] * 5) == UNKNOWN_SLOW_S
    assert slow_s([1.0] * 90 + [9.0] * 10) == 9.0
    assert slow_s([1.0] * 99 + [9.0]) == 1.0
    assert slow_s([0.0] * 30) == SLOW_MIN_S
