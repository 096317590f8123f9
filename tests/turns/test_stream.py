"""Followers of a turn, joining at any moment: every event once, in order; only deltas are lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.clock import VirtualClock
from appliance.store.database import Database
from appliance.store.journal import Draft, Journal
from appliance.turns.stream import QUEUE_LENGTH, Item, Streams
from appliance.types import TextDelta

TURN = "turn_a"

SAY = st.tuples(st.just("say"), st.integers(1, 5))
ACTIONS = st.lists(
    st.one_of(SAY, st.tuples(st.sampled_from(["step", "note", "join", "yield"]), st.just(0))),
    max_size=30,
)


class Scene:
    """A live turn whose steps say numbered words, and those who follow it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.streams = Streams(journal)
        self.streams.open(TURN)
        self.followers: list[asyncio.Task[list[Item]]] = []
        self.spoken: dict[int, str] = {0: ""}
        self.step = 0

    async def append(self, kind: str, **body: Any) -> None:
        (event,) = await self._journal.append(Draft("ses_a", kind, body, TURN), durable=False)
        self.streams.publish_event(event)

    def say(self, words: int = 1) -> None:
        for _ in range(words):
            text = f"{len(self.spoken[self.step])} "
            self.spoken[self.step] += text
            self.streams.publish_delta(TURN, self.step, TextDelta(text))

    async def complete_step(self) -> None:
        await self.append("step.completed", step=self.step, text=self.spoken[self.step])
        self.step += 1
        self.spoken[self.step] = ""

    def join(self) -> None:
        async def follow() -> list[Item]:
            return [item async for items in self.streams.follow(TURN) for item in items]

        self.followers.append(asyncio.create_task(follow()))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(actions=ACTIONS)
async def test_whoever_joins_whenever_sees_each_event_once_and_each_answer_whole(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int]]
) -> None:
    async with Database(tmp_path_factory.mktemp("stream")) as database:
        journal = Journal(database, VirtualClock())
        scene = Scene(journal)
        await scene.append("turn.accepted")
        for action, words in actions:
            match action:
                case "say":
                    scene.say(words)
                case "step":
                    await scene.complete_step()
                case "note":
                    await scene.append("turn.resumed", reason="x")
                case "join":
                    scene.join()
                case "yield":
                    await asyncio.sleep(0)
        scene.join()
        await scene.append("turn.completed")
        wanted = [event.seq for event in await journal.read_turn(TURN)]
        async with asyncio.timeout(60):
            seen = await asyncio.gather(*scene.followers)
        for items in seen:
            assert [item["seq"] for item in items if "seq" in item] == wanted
            check_words(items)


def check_words(items: list[Item]) -> None:
    """The deltas of a step, where any came, are its whole text; none comes after its end."""
    heard: dict[int, str] = {}
    ended: set[int] = set()
    for item in items:
        if item["type"] == "delta":
            assert item["step"] not in ended
            heard[item["step"]] = heard.get(item["step"], "") + item["text"]
        elif item["type"] == "step.completed":
            ended.add(item["step"])
            assert heard.get(item["step"], item["text"]) == item["text"]


async def test_one_who_lags_loses_deltas_and_never_an_event(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with Database(tmp_path_factory.mktemp("stream")) as database:
        journal = Journal(database, VirtualClock())
        scene = Scene(journal)
        await scene.append("turn.accepted")
        lagging = scene.streams.follow(TURN)
        first = await anext(aiter(lagging))
        scene.say(QUEUE_LENGTH + 100)
        for _ in range(5):
            await scene.complete_step()
        await scene.append("turn.completed")
        items = [*first, *[item async for items in lagging for item in items]]
        wanted = [event.seq for event in await journal.read_turn(TURN)]
        assert [item["seq"] for item in items if "seq" in item] == wanted


async def test_closing_ends_every_follower_where_it_stands(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with Database(tmp_path_factory.mktemp("stream")) as database:
        scene = Scene(Journal(database, VirtualClock()))
        await scene.append("turn.accepted")
        for _ in range(3):
            scene.join()
        await asyncio.sleep(0)
        scene.streams.close()
        async with asyncio.timeout(60):
            seen = await asyncio.gather(*scene.followers)
        assert [[item["type"] for item in items] for items in seen] == [["turn.accepted"]] * 3
