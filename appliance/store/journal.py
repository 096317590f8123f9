"""The journal: an append-only, hash-chained table of events; the only truth there is.

Each row's hash covers the row and the hash before it, so an edit, a swap, a deletion or an
insertion anywhere breaks the chain from there on, and the head (kept apart) shows a cut tail.
SQLite's own integrity check sees none of this (measured: 8 changed bytes in a row, "ok").
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from appliance.clock import Clock
from appliance.store.database import Database
from appliance.types import Json

VERIFY_CHUNK = 5000
"""Rows checked between two looks at the writer: a verification never holds the reader long."""


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


@dataclass(frozen=True, slots=True)
class ChainReport:
    """`broken_at` is the first bad position, None when the chain holds; `why` says what is bad."""

    rows: int
    broken_at: int | None = None
    why: str = ""

    @property
    def ok(self) -> bool:
        return self.broken_at is None


class Journal:
    """Appends and reads. Has no state of its own but the database."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def append(
        self, *drafts: Draft, index: Sequence[IndexRow] = (), durable: bool = True
    ) -> tuple[Event, ...]:
        """All of them or none, in this order, with the derived rows.

        `durable` returns after an fsync; otherwise the events survive a killed process but
        perhaps not a power cut. Raises `StoreError`.
        """
        at_ms = self._clock.wall_ms()
        bodies = [_encode(draft.body) for draft in drafts]

        def work(connection: sqlite3.Connection) -> tuple[Event, ...]:
            seq, tip = connection.execute("SELECT seq, hash FROM head").fetchone()
            events = []
            for draft, body in zip(drafts, bodies, strict=True):
                seq += 1
                row = (seq, draft.stream, draft.turn, draft.kind, draft.version, at_ms, body)
                tip = _hash(tip, row)
                connection.execute("INSERT INTO event VALUES (?,?,?,?,?,?,?,?)", (*row, tip))
                events.append(_event(row))
            connection.execute("UPDATE head SET seq = ?, hash = ?", (seq, tip))
            for derived in index:
                derived.write(connection)
            return tuple(events)

        return await self._database.write(work, durable=durable)

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

    async def read_turn(self, turn: str, *, after: int = 0, limit: int = 1000) -> list[Event]:
        """Events of one turn, oldest first."""
        return await self._select("turn = ?", [turn], after, None, limit, False, ())

    async def read_all(
        self, *, after: int = 0, limit: int = 1000, kinds: Sequence[str] = ()
    ) -> list[Event]:
        """Events of every stream, oldest first."""
        return await self._select("1", [], after, None, limit, False, kinds)

    async def verify(self) -> ChainReport:
        """Check every row against the chain, and the chain against its head."""
        seq, tip = 0, bytes(32)
        while True:
            rows = await self._database.read(partial(_chain_rows, after=seq))
            for *row, stored in rows:
                if row[0] != seq + 1:
                    return ChainReport(seq, seq + 1, f"event {seq + 1} is missing")
                tip = _hash(tip, tuple(row))
                if tip != stored:
                    return ChainReport(seq, row[0], f"event {row[0]} is not what was written")
                seq = row[0]
            if len(rows) < VERIFY_CHUNK:
                break
        head_seq, head = await self._database.read(
            lambda connection: connection.execute("SELECT seq, hash FROM head").fetchone()
        )
        if head_seq > seq:
            return ChainReport(seq, seq + 1, f"the last {head_seq - seq} events are missing")
        if head_seq == seq and head != tip:
            return ChainReport(seq, seq, "the head does not match the last event")
        return ChainReport(seq)

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


def _chain_rows(connection: sqlite3.Connection, after: int) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT seq, stream, turn, kind, version, at_ms, body, hash FROM event "
        "WHERE seq > ? ORDER BY seq LIMIT ?",
        (after, VERIFY_CHUNK),
    ).fetchall()


def _encode(body: Mapping[str, Json]) -> str:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def _event(row: tuple[Any, ...]) -> Event:
    seq, stream, turn, kind, version, at_ms, body = row
    return Event(seq, stream, kind, json.loads(body), turn, version, at_ms)


def _hash(tip: bytes, row: tuple[Any, ...]) -> bytes:
    """SHA-256 over the hash before and the row; lengths written, so that no two rows read alike."""
    digest = hashlib.sha256(tip)
    for value in row:
        field = b"\0" if value is None else str(value).encode("utf-8", "surrogatepass")
        digest.update(len(field).to_bytes(8, "big") + field)
    return digest.digest()
