"""Notes in one file per agent, for tests of the toolbox without a daemon around it.

Honest and small: a line of JSON per note, found again by the words it shares with the question. No
meaning, no forgetting, no ranking beyond that.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path

from appliance.errors import Overloaded
from appliance.tools.ports import Note
from appliance.tools.types import ToolContext
from appliance.types import Label

NOTES_MAX_BYTES = 8 << 20
"""Per agent: every recall reads the file whole."""


class FileNotes:
    """Satisfies `ports.Notes`. Notes are an agent's own, shared by its sessions of one person."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writing = asyncio.Lock()

    async def remember(self, text: str, key: str, ctx: ToolContext) -> str:
        """Durable when it returns. Raises `Overloaded` when the file is full."""
        async with self._writing:
            return await asyncio.to_thread(self._append, text, key, ctx)

    async def recall(self, query: str, limit: int, ctx: ToolContext) -> tuple[Note, ...]:
        """Notes that share a word with the query, most words first, then newest first. Notes of a
        higher label than the call's are left out."""
        notes = await asyncio.to_thread(self._read, ctx)
        wanted = _words(query)
        scored = [
            (len(wanted & _words(note.text)), place, note)
            for place, note in enumerate(notes)
            if note.label.rank <= ctx.label.rank
        ]
        found = sorted(scored, key=lambda entry: entry[:2], reverse=True)
        return tuple(note for score, _, note in found if score)[:limit]

    def _append(self, text: str, key: str, ctx: ToolContext) -> str:
        note_id = f"note-{ctx.turn_id}-{key}"
        if any(note.note_id == note_id for note in self._read(ctx)):
            return note_id
        path = self._path(ctx)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        line = json.dumps({"id": note_id, "text": text, "label": ctx.label.value}).encode() + b"\n"
        if path.exists() and path.stat().st_size + len(line) > NOTES_MAX_BYTES:
            raise Overloaded(f"the notes of {ctx.agent} are full", hint="appliance memory")
        with path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        return note_id

    def _read(self, ctx: ToolContext) -> list[Note]:
        try:
            lines = self._path(ctx).read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        whole = [json.loads(line) for line in lines if line.endswith(b"\n")]
        return [Note(body["id"], body["text"], Label(body["label"])) for body in whole]

    def _path(self, ctx: ToolContext) -> Path:
        return self._folder / f"{max(ctx.uid, 0)}-{ctx.agent}.jsonl"


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w{2,}", text.lower()))
