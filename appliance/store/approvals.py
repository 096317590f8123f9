"""Questions to people, derived from the journal: what is pending, and what was decided."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace

from appliance.clock import Clock
from appliance.store.database import Database
from appliance.store.index import select, upsert
from appliance.store.journal import Draft, Journal

PENDING = "pending"

GRANTS_MAX = 1000


@dataclass(frozen=True, slots=True)
class ApprovalRow:
    """`status` is "pending", or the decision."""

    approval_id: str
    turn: str
    session: str
    agent: str
    call_id: str
    tool: str
    summary: str
    reason: str
    call_hash: str
    status: str
    created_ms: int
    expires_ms: int | None = None
    decided_by: int | None = None

    def write(self, connection: sqlite3.Connection) -> None:
        upsert(connection, "approval", self)


class Approvals:
    """Looks up questions, newest first."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, approval_id: str) -> ApprovalRow | None:
        rows = await self._rows({"approval_id": approval_id}, 1)
        return rows[0] if rows else None

    async def page(self, *, status: str | None = PENDING, limit: int = 50) -> list[ApprovalRow]:
        return await self._rows({"status": status}, limit)

    async def _rows(self, where: dict[str, str | None], limit: int) -> list[ApprovalRow]:
        sql, values = select(ApprovalRow, "approval", where, None, limit)
        return await self._database.read(
            lambda connection: [ApprovalRow(*row) for row in connection.execute(sql, values)]
        )


@dataclass(frozen=True, slots=True)
class GrantRow:
    """A standing "always" or "never": calls of this tool that match `pattern` are not asked about.

    What a pattern means is the tools' matter. `revoked_ms` ends it; the row stays.
    """

    grant_id: str
    agent: str
    tool: str
    pattern: str
    granted_by: int
    created_ms: int
    revoked_ms: int | None = None

    def write(self, connection: sqlite3.Connection) -> None:
        upsert(connection, "standing_grant", self)


class Grants:
    """Looks up standing answers, and takes them back."""

    def __init__(self, database: Database, journal: Journal, clock: Clock) -> None:
        self._database = database
        self._journal = journal
        self._clock = clock

    async def standing(self, agent: str, tool: str | None = None) -> list[GrantRow]:
        """Those in force for an agent, newest first."""
        rows = await self._rows({"agent": agent, "tool": tool})
        return [row for row in rows if row.revoked_ms is None]

    async def all(self) -> list[GrantRow]:
        """Of every agent, those taken back too, newest first."""
        return await self._rows({})

    async def revoke(self, grant_id: str, by_uid: int) -> GrantRow | None:
        """Take a standing answer back, for good; None if there is none. On disk on return."""
        rows = await self._rows({"grant_id": grant_id})
        if not rows or rows[0].revoked_ms is not None:
            return rows[0] if rows else None
        revoked = replace(rows[0], revoked_ms=self._clock.wall_ms())
        draft = Draft("grants", "grant.revoked", {"grant_id": grant_id, "by_uid": by_uid})
        await self._journal.append(draft, index=(revoked,), durable=True)
        return revoked

    async def _rows(self, where: dict[str, str | None]) -> list[GrantRow]:
        sql, values = select(GrantRow, "standing_grant", where, None, GRANTS_MAX)
        return await self._database.read(
            lambda connection: [GrantRow(*row) for row in connection.execute(sql, values)]
        )
