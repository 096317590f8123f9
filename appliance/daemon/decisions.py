"""What the scheduler decided: journalled where it concerns a model, kept for a while where a step.

Loads, evictions, deaths and their reasons come seldom and are asked about days later, so they go
into the journal. Grants and refusals come with every step, whose own events tell how long it waited
and what became of it: the latest are kept in RAM.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from appliance.clock import Clock
from appliance.errors import StoreError
from appliance.scheduler.telling import tell
from appliance.scheduler.values import Record
from appliance.store.journal import Draft, Journal

log = logging.getLogger(__name__)

STREAM = "scheduler"
OF_STEPS = frozenset({"grant", "cancel", "refuse"})
KEPT = 1000
"""Decisions about steps held in RAM, and decisions about models that wait for a full disk."""
READ_MAX = 2000
SHOWN_MAX = 100

ABOUT = {
    "load": ("share", "load", "preload", "ready", "load_failed"),
    "eviction": ("evict", "make_way", "yield"),
    "refusal": ("refuse",),
    "crash": ("crash", "load_failed", "breaker_open", "bytes_stuck"),
}
"""What a person may ask about besides a model or a step, and the kinds of records that answer."""


class Decisions:
    """Takes records on the loop and journals them behind the scheduler's back. `async with`
    writes what is left."""

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self._journal = journal
        self._clock = clock
        self._recent: deque[tuple[int, Record]] = deque(maxlen=KEPT)
        self._unwritten: deque[Record] = deque(maxlen=KEPT)
        self._arrived = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._writer: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._writer = self._group.create_task(self._write_on(), name="decisions")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._writer is not None
        self._writer.cancel()
        await self._group.__aexit__(kind, error, trace)
        await self._write()

    def take(self, record: Record) -> None:
        """A decision was made. Does not block."""
        if record.kind in OF_STEPS:
            self._recent.append((self._clock.wall_ms(), record))
        else:
            self._unwritten.append(record)
            self._arrived.set()

    async def about(self, subject: str) -> tuple[list[str], list[dict[str, Any]]]:
        """The latest decisions in words and in numbers, oldest first: about a model, a step, one
        of the kinds of `ABOUT`, or all."""
        events = await self._journal.read(STREAM, limit=READ_MAX, newest_first=True)
        found = [
            _entry(event.at_ms, event.kind, str(event.body["subject"]), event.body["numbers"])
            for event in reversed(events)
        ]
        found += [
            _entry(at_ms, record.kind, record.subject, dict(record.numbers))
            for at_ms, record in self._recent
        ]
        kept = [entry for entry in found if subject == "all" or _is_about(entry, subject)]
        kept.sort(key=lambda entry: entry["at_ms"])
        kept = kept[-SHOWN_MAX:]
        return [_line(entry) for entry in kept], kept

    async def _write_on(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            await self._write()

    async def _write(self) -> None:
        """What the disk refuses is tried again with the next decision."""
        batch, self._unwritten = self._unwritten, deque(maxlen=KEPT)
        if not batch:
            return
        drafts = [
            Draft(STREAM, record.kind, {"subject": record.subject, "numbers": dict(record.numbers)})
            for record in batch
        ]
        try:
            await self._journal.append(*drafts, durable=False)
        except StoreError as error:
            log.warning("decisions of the scheduler wait for the disk: %s", error.message)
            self._unwritten = deque([*batch, *self._unwritten], maxlen=KEPT)


def _entry(at_ms: int, kind: str, subject: str, numbers: Any) -> dict[str, Any]:
    return {"at_ms": at_ms, "kind": kind, "subject": subject, "numbers": numbers}


def _is_about(entry: dict[str, Any], subject: str) -> bool:
    kinds = ABOUT.get(subject)
    if kinds is not None:
        return entry["kind"] in kinds
    return subject in (entry["kind"], entry["subject"], *map(str, entry["numbers"].values()))


def _line(entry: dict[str, Any]) -> str:
    at = datetime.fromtimestamp(entry["at_ms"] / 1000).strftime("%Y-%m-%d %H:%M:%S")
    return f"{at}  {tell(entry['kind'], entry['subject'], entry['numbers'])}"
