"""The ledger's totals follow its entries, its caps hold, and a reservation is closed once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import BudgetExceeded, Conflict
from appliance.store.database import Database
from appliance.store.journal import Draft, Journal
from appliance.store.ledger import Cap, Currency, EntryKind, Ledger, Scope, SpendRow, Total

DAY = "2026-11-23"


def entry(id: str, reservation: str, kind: EntryKind, amount: int, **more: object) -> SpendRow:
    values = {"agent": "cto", "session": "s", "turn": "t", "workflow": "", "day": DAY, "at_ms": 1}
    return SpendRow(id, reservation, kind, Currency.MICRO_USD, amount, **values | more)  # type: ignore[arg-type]


async def book(journal: Journal, row: SpendRow) -> None:
    await journal.append(Draft("budget", "budget.booked", {"id": row.id}), index=(row,))


async def test_concurrent_reservations_never_pass_the_cap(
    database: Database, journal: Journal
) -> None:
    caps = (Cap(Scope.AGENT, "cto", DAY, 100),)
    results = await asyncio.gather(
        *(
            book(journal, entry(f"e{n}", f"r{n}", EntryKind.RESERVE, 30, caps=caps))
            for n in range(9)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(result, BudgetExceeded) for result in results) == 6
    ledger = Ledger(database)
    assert await ledger.total(Currency.MICRO_USD, Scope.AGENT, "cto", DAY) == Total(90, 0)
    assert len(await journal.read("budget")) == 3, "a refused entry takes its event with it"
    assert [row.id for row in await ledger.open_reservations()] == ["e0", "e1", "e2"]


async def test_a_reservation_is_closed_once(journal: Journal, database: Database) -> None:
    await book(journal, entry("a", "r", EntryKind.RESERVE, 50))
    await book(journal, entry("b", "r", EntryKind.SETTLE, 70))
    for again in (entry("c", "r", EntryKind.RELEASE, 0), entry("d", "r", EntryKind.RESERVE, 1)):
        with pytest.raises(Conflict):
            await book(journal, again)
    assert await Ledger(database).total(Currency.MICRO_USD) == Total(0, 70)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(EntryKind), st.integers(0, 5), st.integers(0, 1000)), max_size=30
    )
)
async def test_totals_are_the_sum_of_what_was_accepted(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[EntryKind, int, int]]
) -> None:
    folder: Path = tmp_path_factory.mktemp("ledger")
    held: dict[int, int] = {}
    known: set[int] = set()
    settled = 0
    async with Database(folder) as database:
        for number, (kind, reservation, amount) in enumerate(entries):
            row = entry(str(number), str(reservation), kind, amount)
            is_fine = reservation not in known if kind is EntryKind.RESERVE else reservation in held
            if not is_fine:
                with pytest.raises(Conflict):
                    await database.write(row.write)
            else:
                await database.write(row.write)
                known.add(reservation)
                if kind is EntryKind.RESERVE:
                    held[reservation] = amount
                else:
                    del held[reservation]
                    settled += amount if kind is EntryKind.SETTLE else 0
        total = await Ledger(database).total(Currency.MICRO_USD, Scope.AGENT, "cto", DAY[:7])
        assert total == Total(sum(held.values()), settled)
