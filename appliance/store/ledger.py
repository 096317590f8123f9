"""The ledger of what is scarce: money, cloud tokens, GPU time; reserve, then settle or release.

Entries are only ever added. Running totals per scope and period are kept in the same transaction,
so that asking what is left costs one look-up, and a reservation checks its caps where nobody can
come between: inside the writer. Amounts are integers (micro-dollars, tokens, milliseconds). An
entry is an `IndexRow`: given to `Journal.append(index=...)`, it stands or falls with its event.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import StrEnum

from appliance.errors import BudgetExceeded, Conflict
from appliance.store.database import Database

OPEN_MAX = 10_000
"""Reservations read at once: far above what can be in flight."""


class Currency(StrEnum):
    MICRO_USD = "micro_usd"
    CLOUD_TOKENS = "cloud_tokens"
    GPU_MS = "gpu_ms"


class EntryKind(StrEnum):
    RESERVE = "reserve"
    SETTLE = "settle"
    RELEASE = "release"


class Scope(StrEnum):
    ALL = "all"
    AGENT = "agent"
    SESSION = "session"
    WORKFLOW = "workflow"


@dataclass(frozen=True, slots=True)
class Cap:
    """At most `limit` for one name in one period: a day, a month, or "" for ever."""

    scope: Scope
    name: str
    period: str
    limit: int


@dataclass(frozen=True, slots=True)
class Total:
    reserved: int
    settled: int

    @property
    def promised(self) -> int:
        """What counts against a cap."""
        return self.reserved + self.settled


@dataclass(frozen=True, slots=True)
class SpendRow:
    """One entry. `day` is "YYYY-MM-DD"; no workflow is "".

    A reservation is closed once, by a settlement of what it really cost (more or less than was
    reserved) or by a release (`amount` 0). The close is booked on the names and the day of its
    own row: give it those of the reservation.
    """

    id: str
    reservation_id: str
    kind: EntryKind
    currency: Currency
    amount: int
    agent: str
    session: str
    turn: str
    workflow: str
    day: str
    at_ms: int
    caps: tuple[Cap, ...] = ()

    def write(self, connection: sqlite3.Connection) -> None:
        """Raises `BudgetExceeded` over a cap, `Conflict` for a reservation closed or not open."""
        if self.kind is EntryKind.RESERVE:
            for cap in self.caps:
                _check(connection, self, cap)
            _insert(connection, self)
            _open(connection, self)
            _book(connection, self, self.amount, 0)
            return
        opened = _close(connection, self)
        _insert(connection, self)
        _book(connection, opened, -opened.amount, 0)
        if self.kind is EntryKind.SETTLE:
            _book(connection, self, 0, self.amount)


class Ledger:
    """Looks up totals and what is still open."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def total(
        self, currency: Currency, scope: Scope = Scope.ALL, name: str = "", period: str = ""
    ) -> Total:
        """The running total of one scope and period; zero for what never spent."""
        return await self._database.read(
            lambda connection: _total(connection, currency, scope, name, period)
        )

    async def totals(self, currency: Currency, scope: Scope, period: str = "") -> dict[str, Total]:
        """Every name of a scope in a period, by name."""
        sql = "SELECT name, reserved, settled FROM spend_total "
        sql += "WHERE currency = ? AND scope = ? AND period = ?"
        return await self._database.read(
            lambda connection: {
                name: Total(reserved, settled)
                for name, reserved, settled in connection.execute(sql, (currency, scope, period))
            }
        )

    async def open_reservations(self) -> list[SpendRow]:
        """Reservations neither settled nor released, oldest first: what recovery must close."""
        sql = f"SELECT {_COLUMNS} FROM reservation JOIN spend ON id = spend_id ORDER BY seq LIMIT ?"
        return await self._database.read(
            lambda connection: [_row(values) for values in connection.execute(sql, (OPEN_MAX,))]
        )


_NAMES = tuple(field.name for field in fields(SpendRow) if field.name != "caps")
_COLUMNS = ", ".join(f"spend.{name}" for name in _NAMES)


def _row(values: tuple[object, ...]) -> SpendRow:
    found = dict(zip(_NAMES, values, strict=True))
    found["kind"], found["currency"] = (
        EntryKind(str(found["kind"])),
        Currency(str(found["currency"])),
    )
    return SpendRow(**found)  # type: ignore[arg-type]  # columns have the fields' types


def _scopes(row: SpendRow) -> Iterator[tuple[Scope, str]]:
    yield Scope.ALL, ""
    yield Scope.AGENT, row.agent
    yield Scope.SESSION, row.session
    if row.workflow:
        yield Scope.WORKFLOW, row.workflow


def _check(connection: sqlite3.Connection, row: SpendRow, cap: Cap) -> None:
    so_far = _total(connection, row.currency, cap.scope, cap.name, cap.period).promised
    if so_far + row.amount > cap.limit:
        raise BudgetExceeded(
            f"{cap.scope} {cap.name or 'budget'} {cap.period or 'in total'}: {so_far} of "
            f"{cap.limit} {row.currency} are spent or promised, {row.amount} more do not fit",
            hint="appliance budget shows it; raise the cap in config.toml or wait for the period",
            details={"so_far": so_far, "limit": cap.limit, "asked": row.amount},
        )


def _insert(connection: sqlite3.Connection, row: SpendRow) -> None:
    values = [getattr(row, name) for name in _NAMES]
    try:
        connection.execute(
            f"INSERT INTO spend ({', '.join(_NAMES)}, month) "
            f"VALUES ({', '.join('?' * (len(_NAMES) + 1))})",
            [*values, row.day[:7]],
        )
    except sqlite3.IntegrityError as error:
        raise Conflict(f"{row.kind} {row.id} of {row.reservation_id} refused: {error}") from error


def _open(connection: sqlite3.Connection, row: SpendRow) -> None:
    connection.execute(
        "INSERT INTO reservation VALUES (?, ?, ?)", (row.reservation_id, row.currency, row.id)
    )


def _close(connection: sqlite3.Connection, row: SpendRow) -> SpendRow:
    where = (row.reservation_id, row.currency)
    values = connection.execute(
        f"SELECT {_COLUMNS} FROM reservation JOIN spend ON id = spend_id "
        "WHERE reservation.reservation_id = ? AND reservation.currency = ?",
        where,
    ).fetchone()
    if values is None:
        raise Conflict(f"reservation {row.reservation_id} ({row.currency}) is not open")
    connection.execute("DELETE FROM reservation WHERE reservation_id = ? AND currency = ?", where)
    return _row(values)


def _book(connection: sqlite3.Connection, row: SpendRow, reserved: int, settled: int) -> None:
    connection.executemany(
        "INSERT INTO spend_total VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (currency, scope, name, period) DO UPDATE SET "
        "reserved = reserved + excluded.reserved, settled = settled + excluded.settled",
        [
            (row.currency, scope, name, period, reserved, settled)
            for scope, name in _scopes(row)
            for period in ("", row.day[:7], row.day)
        ],
    )


def _total(
    connection: sqlite3.Connection, currency: str, scope: str, name: str, period: str
) -> Total:
    values = connection.execute(
        "SELECT reserved, settled FROM spend_total "
        "WHERE currency = ? AND scope = ? AND name = ? AND period = ?",
        (currency, scope, name, period),
    ).fetchone()
    return Total(*values) if values else Total(0, 0)
