"""What an engine tells of a running call that costs something."""

from __future__ import annotations

from typing import Protocol

from appliance.types import Usage


class Meter(Protocol):
    """Hears what a running call may cost and has cost (`scheduler.budgets`)."""

    async def sent(self, turn_id: str, guess: Usage) -> str:
        """The request is about to leave; the prompt alone is guessed to cost this. Returns the
        name under which its answer is to be taped (`egress.errand`), empty for not."""
        ...

    async def adopted(self, turn_id: str, tape: str) -> None:
        """It was not sent: its answer is the one on this tape, paid for by an earlier call."""
        ...

    async def refused(self, turn_id: str) -> None:
        """It was not taken: nothing is due."""
        ...

    async def seen(self, turn_id: str, usage: Usage) -> None:
        """It was taken, and has cost this so far."""
        ...
