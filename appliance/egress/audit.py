"""What the record of what left is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from appliance.egress.errand import Errand
from appliance.egress.rules import Purpose, Target
from appliance.types import Json


class Audit(Protocol):
    """Where the record of what left goes; the daemon's journal."""

    async def record(self, kind: str, body: dict[str, Json]) -> None: ...


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the audit, before the kind of event it is."""

    purpose: Purpose
    target: Target
    method: str
    errand: Errand | None
    bytes_out: int

    def to_json(self) -> dict[str, Json]:
        errand = self.errand
        return {
            "purpose": str(self.purpose),
            "host": str(self.target),
            "method": self.method,
            "agent": "" if errand is None else errand.agent,
            "turn": "" if errand is None else errand.turn_id,
            "label": "" if errand is None else errand.label.value,
            "bytes_out": self.bytes_out,
        }
