"""What the router learns from and what it learned: outcomes, and parameters by version."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from appliance.errors import Conflict
from appliance.store.database import Database
from appliance.types import Json

VERSIONS_KEPT = 3
"""A version is some megabytes, and all of them can be made again from the outcomes."""


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """How a routed step turned out; never changed. What `body` holds is the router's matter."""

    outcome_id: str
    turn: str
    agent: str
    kind: str
    at_ms: int
    body: Mapping[str, Json]

    def write(self, connection: sqlite3.Connection) -> None:
        """Raises `sqlite3.IntegrityError` for an id already written."""
        connection.execute(
            "INSERT INTO outcome VALUES (?, ?, ?, ?, ?, ?)",
            (self.outcome_id, self.turn, self.agent, self.kind, self.at_ms, json.dumps(self.body)),
        )


@dataclass(frozen=True, slots=True)
class ParametersRow:
    """A learned state under a name; versions count up, and the last `VERSIONS_KEPT` stay."""

    name: str
    version: int
    at_ms: int
    payload: bytes

    def write(self, connection: sqlite3.Connection) -> None:
        """Raises `Conflict` for a version already there."""
        try:
            connection.execute(
                "INSERT INTO parameters VALUES (?, ?, ?, ?)",
                (self.name, self.version, self.at_ms, self.payload),
            )
        except sqlite3.IntegrityError as error:
            raise Conflict(f"{self.name} has a version {self.version} already") from error
        connection.execute(
            "DELETE FROM parameters WHERE name = ? AND version <= ?",
            (self.name, self.version - VERSIONS_KEPT),
        )


class Outcomes:
    """Looks up outcomes, oldest first, and the newest parameters."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, *, after: str = "", limit: int = 1000) -> list[OutcomeRow]:
        """Outcomes with an id above `after`: ids sort by age."""
        sql = "SELECT * FROM outcome WHERE outcome_id > ? ORDER BY outcome_id LIMIT ?"
        return await self._database.read(
            lambda connection: [
                OutcomeRow(id, turn, agent, kind, at_ms, json.loads(body))
                for id, turn, agent, kind, at_ms, body in connection.execute(sql, (after, limit))
            ]
        )

    async def parameters(self, name: str) -> ParametersRow | None:
        sql = "SELECT * FROM parameters WHERE name = ? ORDER BY version DESC LIMIT 1"
        row = await self._database.read(
            lambda connection: connection.execute(sql, (name,)).fetchone()
        )
        return ParametersRow(*row) if row else None
