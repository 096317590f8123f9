"""Notes on a real journal: found by shared words, once per key, never another's."""

from __future__ import annotations

from pathlib import Path

from appliance.clock import VirtualClock
from appliance.memory.notes import JournalNotes
from appliance.store.database import Database
from appliance.store.journal import Journal
from appliance.types import Label


async def test_notes_are_kept_once_a_key_and_found_with_their_label(tmp_path: Path) -> None:
    async with Database(tmp_path) as database:
        notes = JournalNotes(Journal(database, VirtualClock()))
        first = await notes.remember("a", 1, "The build runs at night", Label.PRIVATE, "k1")
        again = await notes.remember("a", 1, "The build runs at night", Label.PRIVATE, "k1")
        assert first == again
        best = await notes.remember("a", 1, "Night build: ask Ada", Label.PUBLIC, "k2")
        found = await notes.recall("a", 1, "when does the BUILD run, ask Ada", 10)
        assert found == [
            (best, "Night build: ask Ada", Label.PUBLIC),
            (first, "The build runs at night", Label.PRIVATE),
        ]
        assert await notes.recall("a", 1, "build", 1) == found[:1]
        assert await notes.recall("a", 1, "unrelated", 10) == []


async def test_another_persons_or_agents_notes_do_not_exist(tmp_path: Path) -> None:
    async with Database(tmp_path) as database:
        notes = JournalNotes(Journal(database, VirtualClock()))
        await notes.remember("a", 1, "secret plan", Label.PUBLIC, "k")
        assert await notes.recall("a", 2, "secret plan", 10) == []
        assert await notes.recall("b", 1, "secret plan", 10) == []
