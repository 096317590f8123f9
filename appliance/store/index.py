"""Derived tables for looking things up: sessions and turns. Rebuildable from the journal.

A row is a frozen value that knows how to write itself; the journal writes it in the transaction
of the events it follows from. Statuses are plain strings: what they mean is not the store's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from appliance.store.database import Database


@dataclass(frozen=True, slots=True)
class SessionRow:
    session_id: str
    agent: str
    owner_uid: int
    title: str
    created_ms: int
    updated_ms: int
    status: str

    def write(self, connection: sqlite3.Connection) -> None:
        upsert(connection, "session", self)


@dataclass(frozen=True, slots=True)
class TurnRow:
    turn_id: str
    session_id: str
    agent: str
    status: str
    owner_uid: int
    idempotency_key: str | None
    created_ms: int
    updated_ms: int
    parent_turn: str | None = None

    def write(self, connection: sqlite3.Connection) -> None:
        upsert(connection, "turn", self)


class Index:
    """Looks up sessions and turns. Ids sort by age, so a page is `id < before`, newest first."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def session(self, session_id: str) -> SessionRow | None:
        rows = await self._rows(SessionRow, "session", {"session_id": session_id}, None, 1)
        return rows[0] if rows else None

    async def sessions(
        self, *, owner_uid: int | None = None, limit: int = 50, before: str | None = None
    ) -> list[SessionRow]:
        return await self._rows(SessionRow, "session", {"owner_uid": owner_uid}, before, limit)

    async def turn(self, turn_id: str) -> TurnRow | None:
        rows = await self._rows(TurnRow, "turn", {"turn_id": turn_id}, None, 1)
        return rows[0] if rows else None

    async def turn_by_key(self, owner_uid: int, key: str) -> TurnRow | None:
        where = {"owner_uid": owner_uid, "idempotency_key": key}
        rows = await self._rows(TurnRow, "turn", where, None, 1)
        return rows[0] if rows else None

    async def turns(
        self,
        *,
        session: str | None = None,
        status: Sequence[str] | None = None,
        owner_uid: int | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> list[TurnRow]:
        where = {"session_id": session, "owner_uid": owner_uid, "status": status}
        return await self._rows(TurnRow, "turn", where, before, limit)

    async def _rows(
        self, kind: type[Any], table: str, where: dict[str, Any], before: str | None, limit: int
    ) -> list[Any]:
        sql, values = select(kind, table, where, before, limit)
        return await self._database.read(
            lambda connection: [kind(*row) for row in connection.execute(sql, values)]
        )


def upsert(connection: sqlite3.Connection, table: str, row: Any) -> None:
    """Write a row, replacing one of the same first column (its primary key)."""
    names = tuple(row.__dataclass_fields__)
    changes = ",".join(f"{name}=excluded.{name}" for name in names[1:])
    connection.execute(
        f"INSERT INTO {table} ({','.join(names)}) VALUES ({','.join('?' * len(names))}) "
        f"ON CONFLICT ({names[0]}) DO UPDATE SET {changes}",
        astuple(row),
    )


def select(
    kind: type[Any], table: str, where: dict[str, Any], before: str | None, limit: int
) -> tuple[str, list[Any]]:
    """A newest-first page as SQL and its values; a condition of None is left out."""
    names = tuple(kind.__dataclass_fields__)
    conditions = ["1"]
    values: list[Any] = []
    for name, value in where.items():
        if value is None:
            continue
        if isinstance(value, list | tuple):
            conditions.append(f"{name} IN ({','.join('?' * len(value))})")
            values += value
        else:
            conditions.append(f"{name} = ?")
            values.append(value)
    if before is not None:
        conditions.append(f"{names[0]} < ?")
        values.append(before)
    sql = f"SELECT {','.join(names)} FROM {table} WHERE {' AND '.join(conditions)}"
    return f"{sql} ORDER BY {names[0]} DESC LIMIT ?", [*values, limit]
