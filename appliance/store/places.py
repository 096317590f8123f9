"""How sensitive the places are where tools leave things: a session's workspace, an MCP server.

What a turn writes into a file outlives the turn, and whoever reads it later has no history that
would tell where it came from. So a place keeps the highest label of any work that could have
written to it, for good: a fold of its stream in the journal, like all that is remembered.
"""

from __future__ import annotations

import asyncio

from appliance.store.journal import Draft, Journal
from appliance.types import Label, highest

KIND = "place.labelled"


class PlaceLabels:
    """Labels of places by name, such as `workspace/ID` or `mcp/NAME`."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._raising = asyncio.Lock()

    async def of(self, place: str) -> Label:
        """The highest label anything was left with there; public for a place never used."""
        newest = await self._journal.read(_stream(place), newest_first=True, limit=1, kinds=(KIND,))
        return Label(newest[0].body["label"]) if newest else Label.PUBLIC

    async def raise_to(self, place: str, label: Label) -> Label:
        """The place's label, at least this from now on; on disk when this returns."""
        known = await self.of(place)
        if label.rank <= known.rank:
            return known
        async with self._raising:
            label = highest(label, await self.of(place))
            await self._journal.append(Draft(_stream(place), KIND, {"label": label.value}))
        return label


def _stream(place: str) -> str:
    return f"place/{place}"
