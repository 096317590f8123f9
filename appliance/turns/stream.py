"""Lets any number of followers watch a turn: journalled events, and between them live deltas.

Whole messages are journalled, deltas are not. A follower who comes late reads the journal, then
the deltas said so far of the step in progress, then joins the live tail: no gap and no repeat.
One who does not keep up loses deltas, never events: the queue is dropped and the journal read
again from where the follower stood.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, TypeAlias

from appliance.store.journal import Event, Journal
from appliance.turns import events as ev
from appliance.types import Delta, Json, Progress, TextDelta, ThinkingDelta, ToolCallDelta

QUEUE_LENGTH = 4096
"""Items a follower may lag behind: about a minute of one fast local stream."""

READ_CHUNK = 500

Item: TypeAlias = dict[str, Any]
"""What a follower gets: `turns.events.to_client` of an event, or a delta (`type` "delta")."""

Offer: TypeAlias = tuple[int | None, Item]
"""An item with its journal position; None for a delta."""


class Streams:
    """The live side of turns. One loop publishes; followers come and go."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._turns: dict[str, _Live] = {}

    def open(self, turn_id: str) -> None:
        """From here on the turn is live: who follows it waits for what is still to come."""
        self._turns.setdefault(turn_id, _Live())

    def close(self) -> None:
        """End every follower where it stands: the daemon stops, and its turns go on later."""
        turns, self._turns = self._turns, {}
        for live in turns.values():
            live.close()

    def publish_event(self, event: Event) -> None:
        """Tell the followers of the event's turn; called right after the append, in order."""
        if event.turn is None:
            return
        live = self._turns.get(event.turn)
        if live is None:
            return
        live.publish(event.seq, ev.to_client(event), ends_step=event.kind.startswith("step."))
        if event.kind in ev.TERMINAL_KINDS:
            del self._turns[event.turn]

    def publish_delta(self, turn_id: str, step: int, delta: Delta) -> None:
        live = self._turns.get(turn_id)
        if live is not None:
            live.publish(None, delta_to_json(turn_id, step, delta), ends_step=False)

    async def follow(self, turn_id: str, after: int = 0) -> AsyncIterator[list[Item]]:
        """Everything of the turn after journal position `after`, ending with its end, in batches:
        what is there at one moment is one wake-up, and one write to a client.

        The caller has checked that the turn exists.
        """
        place = _Place(after)
        while True:
            live = self._turns.get(turn_id)
            follower = live.join() if live is not None else None
            try:
                async for offered in self._replay(turn_id, place):
                    yield offered
                    if place.is_at_end:
                        return
                if follower is None:
                    if turn_id not in self._turns:
                        return  # not live and no end: the daemon is stopping
                    continue
                async for waiting in follower.batches():
                    if items := place.take(waiting):
                        yield items
                    if place.is_at_end:
                        return
            finally:
                if live is not None and follower is not None:
                    live.leave(follower)

    async def _replay(self, turn_id: str, place: _Place) -> AsyncIterator[list[Item]]:
        while True:
            events = await self._journal.read_turn(turn_id, after=place.after, limit=READ_CHUNK)
            if events:
                yield place.take((event.seq, ev.to_client(event)) for event in events)
            if len(events) < READ_CHUNK:
                return


class _Place:
    """How far one follower has read: what it is offered again is not repeated."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.is_at_end = False
        self._step_done = -1

    def take(self, offered: Iterable[Offer]) -> list[Item]:
        """Of these, in order, what is new; nothing after the turn's end."""
        taken: list[Item] = []
        for seq, item in offered:
            if seq is None:
                if item["step"] <= self._step_done:
                    continue  # said of a step whose whole message was replayed already
            elif seq <= self.after:
                continue
            else:
                self.after = seq
                if item["type"] == ev.StepCompleted.kind:
                    self._step_done = int(item.get("step", 0))
            taken.append(item)
            if item["type"] in ev.TERMINAL_KINDS:
                self.is_at_end = True
                break
        return taken


class _Live:
    """One turn in progress: its followers and the deltas of its current step."""

    def __init__(self) -> None:
        self._followers: set[_Follower] = set()
        self._said: list[Item] = []

    def publish(self, seq: int | None, item: Item, *, ends_step: bool) -> None:
        if ends_step:
            self._said.clear()
        elif seq is None and len(self._said) < QUEUE_LENGTH:
            self._said.append(item)
        for follower in self._followers:
            follower.offer(seq, item)

    def close(self) -> None:
        for follower in self._followers:
            follower.close()

    def join(self) -> _Follower:
        follower = _Follower()
        for item in self._said:
            follower.offer(None, item)
        self._followers.add(follower)
        return follower

    def leave(self, follower: _Follower) -> None:
        self._followers.discard(follower)


class _Follower:
    def __init__(self) -> None:
        self._waiting: list[Offer] = []
        self._something = asyncio.Event()
        self._lags = False

    def offer(self, seq: int | None, item: Item) -> None:
        if self._lags:
            return
        if len(self._waiting) >= QUEUE_LENGTH:
            self._lags = True
            return
        self._waiting.append((seq, item))
        self._something.set()

    def close(self) -> None:
        """Wake who waits for the next item; there is none."""
        self._lags = True
        self._something.set()

    async def batches(self) -> AsyncIterator[list[Offer]]:
        """What was offered, in order, all there is at once; ends when this follower has lagged
        and must read again."""
        while True:
            await self._something.wait()
            self._something.clear()
            waiting, self._waiting = self._waiting, []
            if waiting:
                yield waiting
            if self._lags and not self._waiting:
                return


def delta_to_json(turn_id: str, step: int, delta: Delta) -> Item:
    """A delta as clients see it: `type` "delta" or "progress", with the step it belongs to."""
    item: dict[str, Json] = {"type": "delta", "turn": turn_id, "step": step}
    match delta:
        case TextDelta(text=text):
            item |= {"kind": "text", "text": text}
        case ThinkingDelta(text=text):
            item |= {"kind": "thinking", "text": text}
        case ToolCallDelta(call_id=call_id, name=name, arguments_json=arguments):
            item |= {"kind": "tool_call", "id": call_id, "name": name, "arguments": arguments}
        case Progress(stage=stage, done=done, total=total):
            item |= {"type": "progress", "stage": stage, "done": done, "total": total}
    return item
