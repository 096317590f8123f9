"""The audit of the door, in the journal."""

from __future__ import annotations

from appliance.store.journal import Draft, Journal
from appliance.types import Json

STREAM = "egress"


class JournalAudit:
    """`egress.audit.Audit`. Survives a killed process; not worth an fsync per request, since
    the reservation of a call that costs money is on disk before it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def record(self, kind: str, body: dict[str, Json]) -> None:
        await self._journal.append(Draft(STREAM, kind, body), durable=False)
