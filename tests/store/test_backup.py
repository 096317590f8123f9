"""A backup taken while the journal grows restores to exactly a moment of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from appliance.clock import VirtualClock
from appliance.errors import Conflict
from appliance.store.backup import back_up, restore
from appliance.store.database import Database
from appliance.store.journal import Draft, Journal


async def test_a_backup_while_writing_restores_to_the_same_events(tmp_path: Path) -> None:
    state, copy, back = tmp_path / "state", tmp_path / "copy.db", tmp_path / "back"
    async with Database(state) as database:
        journal = Journal(database, VirtualClock())
        await journal.append(*(Draft("s", "k", {"n": n}) for n in range(500)))
        backing_up = asyncio.create_task(asyncio.to_thread(back_up, state, copy))
        while not backing_up.done():
            await journal.append(Draft("s", "k", {"n": -1}))
        report = await backing_up
        events = await journal.read_all(limit=report.rows)
    assert restore(copy, back) == report
    async with Database(back) as database:
        assert await Journal(database, VirtualClock()).read_all(limit=10_000) == events
    with pytest.raises(Conflict):
        restore(copy, back)
