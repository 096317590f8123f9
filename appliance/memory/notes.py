"""What agents noted down, on the journal: `remember` and `recall` until memory proper is there.

Notes belong to a person and an agent. Recall ranks by how many words of the query a note shares,
newest first between equals, over the latest `NOTES_MAX`. A note's label comes back with it.
"""

from __future__ import annotations

import re

from appliance.clock import new_id
from appliance.store.journal import Draft, Journal
from appliance.types import Label

NOTES_MAX = 1000
KIND = "note.remembered"

_WORD = re.compile(r"\w+")


class JournalNotes:
    """Notes in one journal stream per person and agent."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def remember(self, agent: str, uid: int, text: str, label: Label, key: str) -> str:
        """Keep a note; the same key keeps it once. Returns its id."""
        for note_id, _, _, known in await self._notes(agent, uid):
            if known == key:
                return note_id
        note_id = new_id("note")
        body = {"id": note_id, "text": text, "label": label.value, "key": key}
        await self._journal.append(Draft(_stream(agent, uid), KIND, body))
        return note_id

    async def recall(
        self, agent: str, uid: int, query: str, limit: int
    ) -> list[tuple[str, str, Label]]:
        """The best matching notes as (id, text, label); empty when none shares a word."""
        words = set(_words(query))
        scored = [
            (len(words & set(_words(text))), note_id, text, label)
            for note_id, text, label, _ in await self._notes(agent, uid)
        ]
        hits = sorted((row for row in scored if row[0]), key=lambda row: -row[0])
        return [(note_id, text, label) for _, note_id, text, label in hits[:limit]]

    async def _notes(self, agent: str, uid: int) -> list[tuple[str, str, Label, str]]:
        events = await self._journal.read(
            _stream(agent, uid), newest_first=True, limit=NOTES_MAX, kinds=(KIND,)
        )
        return [
            (event.body["id"], event.body["text"], Label(event.body["label"]), event.body["key"])
            for event in events
        ]


def _stream(agent: str, uid: int) -> str:
    return f"notes/{uid}/{agent}"


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]
