"""What a session has said before: read back from the journal, newest turns first.

Only as much is read as a prompt could use, so a session of five thousand steps opens as fast as
one of fifty.
"""

from __future__ import annotations

from appliance.store.index import Index
from appliance.store.journal import Journal
from appliance.turns.live import load_turn
from appliance.turns.prompt import estimate_tokens
from appliance.turns.state import TurnState
from appliance.types import Label, Message, highest

TURNS_AT_ONCE = 20

SLACK = 1.5
"""Estimates are off by up to a third; reading half as much again makes sure of a full window."""


class JournalHistory:
    """`step.History` on the journal."""

    def __init__(self, journal: Journal, index: Index) -> None:
        self._journal = journal
        self._index = index

    async def earlier(
        self, state: TurnState, enough_tokens: int
    ) -> tuple[tuple[Message, ...], Label]:
        """Messages of the session's turns that ended before this one began, oldest first, and
        the highest label of any of those turns."""
        messages: tuple[Message, ...] = ()
        label = Label.PUBLIC
        before = state.turn_id
        while estimate_tokens(messages) < enough_tokens * SLACK:
            rows = await self._index.turns(
                session=state.session_id, before=before, limit=TURNS_AT_ONCE
            )
            for row in rows:
                before = row.turn_id
                turn = await load_turn(self._journal, row.turn_id)
                if turn is not None and turn.is_finished and turn.steps:
                    messages = (*turn.messages(), *messages)
                    label = highest(label, turn.label)
                if estimate_tokens(messages) >= enough_tokens * SLACK:
                    break
            if len(rows) < TURNS_AT_ONCE:
                break
        return messages, label
