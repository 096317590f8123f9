"""The journal: an append-only, hash-chained table of events; the only truth there is.

Appending is the state change; everything else is computed from what was appended. `tail` has no
buffer: a follower reads from disk what it has not seen, and sleeps when there is nothing, so a
slow one costs nothing and no gap or repeat is possible.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from appliance.clock import Clock
from appliance.store.chain import ChainReport, Check, Head, read_chunk, read_head, row_hash
from appliance.store.database import Database
from appliance.types import Json

TAIL_CHUNK = 256
"""Events a follower holds at a time: about half a megabyte of ordinary ones."""


@dataclass(frozen=True, slots=True)
class Draft:
    """An event to be appended. `stream` is a session id, or "daemon", "budget" and the like."""

    stream: str
    kind: str
    body: Mapping[str, Json]
    turn: str | None = None
    version: int = 1


@dataclass(frozen=True, slots=True)
class Event:
    """An appended event. `seq` counts all events of the journal from 1, without a gap."""

    seq: int
    stream: str
    kind: str
    body: dict[str, Json]
    turn: str | None
    version: int
    at_ms: int


class IndexRow(Protocol):
    """A row of a derived table, written in the same transaction as the events it follows from."""

    def write(self, connection: sqlite3.Connection) -> None: ...


class Journal:
    """Appends, reads, follows. One per database: followers hear of appends through it."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._arrivals: dict[str, asyncio.Event] = {}

    async def append(
        self,
        *drafts: Draft,
        index: Sequence[IndexRow] = (),
        durable: bool = True,
        opens_work: bool = False,
    ) -> tuple[Event, ...]:
        """All of them or none, in this order, with the derived rows.

        `durable` returns after an fsync; otherwise the events survive a killed process but
        perhaps not a power cut. `opens_work` is refused first when the disk runs full, so that
        what already runs can still end. A caller cancelled here does not stop the append. Raises
        `StoreError`, and whatever a derived row raises (nothing is written then).
        """
        at_ms = self._clock.wall_ms()
        bodies = [_encode(draft.body) for draft in drafts]

        def work(connection: sqlite3.Connection) -> tuple[Event, ...]:
            head = read_head(connection)
            seq, tip = head.seq, head.hash
            events = []
            for draft, body in zip(drafts, bodies, strict=True):
                seq += 1
                tip = row_hash(
                    tip,
                    seq,
                    draft.version,
                    at_ms,
                    draft.stream.encode(),
                    None if draft.turn is None else draft.turn.encode(),
                    draft.kind.encode(),
                    body,
                )
                row = (seq, draft.stream, draft.turn, draft.kind, draft.version, at_ms)
                text = body.decode()
                connection.execute("INSERT INTO event VALUES (?,?,?,?,?,?,?,?)", (*row, text, tip))
                events.append(_event((*row, text)))
            connection.execute("UPDATE head SET seq = ?, hash = ?", (seq, tip))
            for derived in index:
                derived.write(connection)
            return tuple(events)

        return await self._database.write(
            work,
            durable=durable,
            opens_work=opens_work,
            committed=partial(self._announce, drafts),
        )

    async def read(
        self,
        stream: str,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int = 1000,
        newest_first: bool = False,
        kinds: Sequence[str] = (),
    ) -> list[Event]:
        """Events of one stream with `after < seq < before`, at most `limit`."""
        return await self._select("stream = ?", [stream], after, before, limit, newest_first, kinds)

    async def read_turn(
        self, turn: str, *, after: int = 0, limit: int = 1000, kinds: Sequence[str] = ()
    ) -> list[Event]:
        """Events of one turn, oldest first."""
        return await self._select("turn = ?", [turn], after, None, limit, False, kinds)

    async def read_all(
        self, *, after: int = 0, limit: int = 1000, kinds: Sequence[str] = ()
    ) -> list[Event]:
        """Events of every stream, oldest first."""
        return await self._select("1", [], after, None, limit, False, kinds)

    async def heartbeat(self) -> None:
        """Goes through the writer and back: proof for the watchdog that it still commits."""
        await self._database.write(lambda connection: None)

    async def tail(
        self, *, stream: str | None = None, turn: str | None = None, after: int = 0
    ) -> AsyncIterator[Event]:
        """Events after a position, those on disk first, then each as it comes; never ends.

        Of one stream, or one turn, or (neither given) of all. Every event once, in order.
        """
        where = "stream = ?" if stream is not None else "1"
        values = [stream] if stream is not None else []
        if turn is not None:
            where, values = f"{where} AND turn = ?", [*values, turn]
        topic = _topic(stream, turn)
        while True:
            arrival = self._arrivals.setdefault(topic, asyncio.Event())
            events = await self._select(where, values, after, None, TAIL_CHUNK, False, ())
            for event in events:
                yield event
                after = event.seq
            if not events:
                await arrival.wait()

    async def head(self) -> Head:
        """Where the journal ends; kept elsewhere, a witness for a later `verify`."""
        return await self._database.read(read_head)

    async def verify(self, witness: Head | None = None) -> ChainReport:
        """Check every row against the chain, and the chain against its head and the witness."""
        check = Check(witness)
        while check.report is None:
            chunk = await self._database.read(partial(read_chunk, after=check.seq))
            await asyncio.to_thread(check.take, chunk)
        return check.report

    def _announce(self, drafts: Sequence[Draft]) -> None:
        """Wake who follows these; a later follower makes itself a new bell before it reads."""
        topics = {_topic(None, None)}
        for draft in drafts:
            topics |= {_topic(draft.stream, None), _topic(None, draft.turn)}
        for topic in topics:
            if arrival := self._arrivals.pop(topic, None):
                arrival.set()

    async def _select(
        self,
        where: str,
        values: list[Any],
        after: int,
        before: int | None,
        limit: int,
        newest_first: bool,
        kinds: Sequence[str],
    ) -> list[Event]:
        sql = f"SELECT seq, stream, turn, kind, version, at_ms, body FROM event WHERE {where}"
        sql += " AND seq > ?"
        values = [*values, after]
        if before is not None:
            sql += " AND seq < ?"
            values.append(before)
        if kinds:
            sql += f" AND kind IN ({','.join('?' * len(kinds))})"
            values += kinds
        sql += f" ORDER BY seq {'DESC' if newest_first else 'ASC'} LIMIT ?"
        values.append(limit)
        return await self._database.read(
            lambda connection: [_event(row) for row in connection.execute(sql, values)]
        )


def _topic(stream: str | None, turn: str | None) -> str:
    if turn is not None:
        return f"turn {turn}"
    return "" if stream is None else f"stream {stream}"


def _encode(body: Mapping[str, Json]) -> bytes:
    """Compact JSON in UTF-8; half a surrogate pair (models emit them) goes in escaped."""
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(body, separators=(",", ":")).encode()


def _event(row: tuple[Any, ...]) -> Event:
    seq, stream, turn, kind, version, at_ms, body = row
    return Event(seq, stream, kind, json.loads(body), turn, version, at_ms)
