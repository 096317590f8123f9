"""The hash chain over the journal's rows: how one is computed, and how a journal is checked.

Each row's hash covers the row and the hash before it, so an edit, a swap, a deletion or an
insertion breaks the chain at that row, and the head (a row of its own) shows a cut tail. SQLite's
integrity check sees none of this (measured: 8 changed bytes in a row, "ok").

Whoever can write the file can also recompute the whole chain. Against that only a `Head` kept
elsewhere helps (printed, mailed, in another machine's log): a check given one finds any rewriting
of what came before it.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

CHUNK = 5000
"""Rows checked between two looks at the database: a check never holds a reader for long."""

START = bytes(32)


@dataclass(frozen=True, slots=True)
class Head:
    """The last event's position and hash; position 0 and zeroes when there is none."""

    seq: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class ChainReport:
    """`broken_at` is the first bad position, None when the chain holds; `why` says what is bad."""

    rows: int
    broken_at: int | None = None
    why: str = ""

    @property
    def ok(self) -> bool:
        return self.broken_at is None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows in order, and the head of the same snapshot; `is_last` when no rows follow."""

    rows: list[tuple[object, ...]]
    head: Head
    is_last: bool


def row_hash(
    tip: bytes,
    seq: object,
    version: object,
    at_ms: object,
    stream: bytes,
    turn: bytes | None,
    kind: bytes,
    body: bytes,
) -> bytes:
    """SHA-256 over the hash before and the row. Lengths go first, so no two rows read alike."""
    turn_size = -1 if turn is None else len(turn)
    sizes = b"%a|%a|%a|%d|%d|%d|" % (seq, version, at_ms, len(stream), turn_size, len(kind))
    return hashlib.sha256(b"".join((tip, sizes, stream, turn or b"", kind, body))).digest()


def read_head(connection: sqlite3.Connection) -> Head:
    row = connection.execute("SELECT seq, hash FROM head").fetchone()
    return Head(*row) if row else Head(-1, b"")


def read_chunk(connection: sqlite3.Connection, after: int) -> Chunk:
    """The next rows as bytes: a row whose text is no longer text must not stop the check."""
    connection.execute("BEGIN")
    try:
        rows = connection.execute(
            "SELECT seq, version, at_ms, CAST(stream AS BLOB), CAST(turn AS BLOB), "
            "CAST(kind AS BLOB), CAST(body AS BLOB), hash FROM event WHERE seq > ? "
            "ORDER BY seq LIMIT ?",
            (after, CHUNK),
        ).fetchall()
        return Chunk(rows, read_head(connection), len(rows) < CHUNK)
    finally:
        connection.execute("COMMIT")


class Check:
    """Walks a journal chunk by chunk; `report` is there once something is bad or all is read."""

    def __init__(self, witness: Head | None = None) -> None:
        self._witness = witness
        self._tip = START
        self.seq = 0
        self.report: ChainReport | None = None

    def take(self, chunk: Chunk) -> None:
        bad = self._walk(chunk.rows)
        if bad is None and chunk.is_last:
            bad = self._compare(chunk.head)
            if bad is None:
                self.report = ChainReport(self.seq)
        if bad is not None:
            self.report = ChainReport(self.seq, *bad)

    def _walk(self, rows: Iterable[tuple[object, ...]]) -> tuple[int, str] | None:
        witness = self._witness
        for *row, stored in rows:
            expected = self.seq + 1
            if row[0] != expected:
                return expected, f"event {expected} is missing"
            tip = row_hash(self._tip, *row)  # type: ignore[arg-type]  # columns as selected above
            if tip != stored:
                return expected, f"event {expected} is not what was written"
            if witness is not None and witness.seq == expected and witness.hash != tip:
                return expected, f"the events up to {expected} were rewritten"
            self._tip, self.seq = tip, expected
        return None

    def _compare(self, head: Head) -> tuple[int, str] | None:
        end = max(head.seq, self._witness.seq if self._witness else 0)
        if end > self.seq:
            return self.seq + 1, f"the last {end - self.seq} events are missing"
        if head.seq < self.seq:
            return head.seq + 1, f"event {head.seq + 1} was not appended by the journal"
        if head.hash != self._tip:
            return self.seq, "the head does not match the last event"
        return None


def check_file(connection: sqlite3.Connection, witness: Head | None = None) -> ChainReport:
    """Check a whole journal at once, for a file nobody has open."""
    check = Check(witness)
    while check.report is None:
        check.take(read_chunk(connection, check.seq))
    return check.report
