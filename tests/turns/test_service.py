"""The front of the turns over a real journal: what is accepted runs."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

from appliance.clock import SystemClock
from appliance.config.load import parse
from appliance.store.approvals import Approvals
from appliance.store.database import FILE_NAME, Database
from appliance.store.index import Index
from appliance.store.journal import Journal
from appliance.turns.live import LiveTurn
from appliance.turns.service import StartTurn, Turns
from appliance.types import Role, text_message
from tests.daemons import SCRIPTED_CONFIG

CAUGHT = 5


async def test_a_turn_that_is_on_disk_runs_though_its_start_was_cancelled(tmp_path: Path) -> None:
    """As that of a colleague, when who asked for it is cancelled while it is accepted."""
    config = parse(SCRIPTED_CONFIG, tmp_path / "config.toml")
    clock = SystemClock()

    async def run(turn: LiveTurn) -> None:
        await asyncio.Event().wait()

    async with Database(tmp_path) as database:
        journal, index = Journal(database, clock), Index(database)
        async with Turns(
            journal, index, Approvals(database), lambda: config, run, clock, lambda *_: ()
        ) as turns:
            caught = 0
            async with asyncio.timeout(60):
                while caught < CAUGHT:
                    caught += await cancelled_once_on_disk(turns, tmp_path / FILE_NAME)
            assert accepted(tmp_path / FILE_NAME) == turns.unfinished_count >= CAUGHT


async def cancelled_once_on_disk(turns: Turns, file: Path) -> bool:
    """Start a turn and cancel the start in the moment between the disk and its return; whether it
    was caught there."""
    before = accepted(file)
    wanted = StartTurn(agent="assistant", message=text_message(Role.USER, "hello"), owner_uid=0)
    starting = asyncio.create_task(turns.start(wanted))
    while not starting.done():
        if accepted(file) > before:
            starting.cancel()
            break
        await asyncio.sleep(0)
    await asyncio.wait([starting])
    return starting.cancelled()


def accepted(file: Path) -> int:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as reader:
        found: tuple[int] = reader.execute(
            "SELECT count(*) FROM event WHERE kind = 'turn.accepted'"
        ).fetchone()
    return found[0]
