"""Calls that a killed daemon left open: what is due for each, by its tape or by the journal.

The answers of paid calls are on tape (`egress.courier`), written by a process that outlives this
one; a call that a killed daemon left is settled to what its tape says, which is the provider's own
count, when the answer has ended. Until then the reservation stands. Without a tape, or where it
tells nothing, what the journal last heard decides:

- it was never sent, or the provider refused it: nothing is due;
- it had begun: due is what was last seen;
- it was sent, and nothing was heard: due is the prompt, as guessed from its length (`assumed` in
  the event). A provider stops generating when the connection goes.

The other choice for the last, the whole reservation, is safe and wrong by a hundred times where
answers are short and their limit is long: after a few crashes a day's cap would be gone unspent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from appliance.engines.provider.bill import Due
from appliance.errors import ApplianceError
from appliance.scheduler.amounts import Amounts, amounts_of, to_json
from appliance.store.journal import Journal
from appliance.store.ledger import Currency, Ledger, SpendRow

log = logging.getLogger(__name__)

SETTLE_S = 5.0
"""How long a call whose answer was adopted waits for the one that pays for it to be settled: both
come to the end of the same tape."""

STREAM = "budget"
"""Of the journal."""

PAGE = 1_000
"""Events read at once when a start looks back for what was heard."""

SENT, REFUSED, SEEN = "budget.sent", "budget.refused", "budget.seen"
"""Kinds of events that tell how far a call got."""


class Tapes(Protocol):
    """The answers of paid calls as the courier wrote them down, by reservation."""

    async def is_ready(self) -> bool:
        """Whether a call that is about to leave will be taped."""
        ...

    def was_left(self, name: str) -> bool:
        """Whether an earlier daemon left a tape of this call."""
        ...

    async def due(self, name: str) -> Due | None:
        """What the tape tells when nothing more can come; None where it tells nothing."""
        ...

    def forget(self, name: str) -> None:
        """The call is settled."""
        ...


class NoTapes:
    """Where no call is taped."""

    async def is_ready(self) -> bool:
        return False

    def was_left(self, name: str) -> bool:
        return False

    async def due(self, name: str) -> Due | None:
        return None

    def forget(self, name: str) -> None:
        return None


@dataclass(frozen=True, slots=True)
class _Heard:
    """What a killed process last wrote of a call."""

    kind: str = REFUSED
    is_taped: bool = False
    amounts: Amounts = field(default_factory=dict)

    @property
    def due(self) -> Amounts | None:
        """What is due by that alone. No tape is made after its request left: taped, and no tape
        there, is not sent."""
        if self.kind == REFUSED or (self.kind == SENT and self.is_taped):
            return None
        return self.amounts


@dataclass(frozen=True, slots=True, eq=False)
class _Left:
    """A reservation of a killed daemon whose answer is on tape, or on its way there."""

    rows: tuple[SpendRow, ...]
    heard: _Heard
    is_settled: asyncio.Event = field(default_factory=asyncio.Event)


class Close(Protocol):
    """Settles a reservation to these amounts, or releases it for None."""

    def __call__(
        self, rows: tuple[SpendRow, ...], amounts: Amounts | None, *, assumed: bool
    ) -> Awaitable[None]: ...


class LeftCalls:
    """What an earlier daemon left open. `recover` once, at the start; then `settle_all`."""

    def __init__(self, journal: Journal, ledger: Ledger, tapes: Tapes, close: Close) -> None:
        self._journal = journal
        self._ledger = ledger
        self._tapes = tapes
        self._close = close
        self._on_tape: dict[str, _Left] = {}

    async def recover(self) -> None:
        """Close what needs no tape; what is still on its way to one stays promised."""
        calls: dict[str, list[SpendRow]] = {}
        for row in await self._ledger.open_reservations():
            calls.setdefault(row.reservation_id, []).append(row)
        if not calls:
            return
        oldest_ms = min(row.at_ms for (row, *_) in calls.values())
        heard = await self._last_heard(set(calls), oldest_ms)
        for reservation_id, rows in calls.items():
            last = heard.get(reservation_id, _Heard())
            if self._tapes.was_left(reservation_id):
                self._on_tape[reservation_id] = _Left(tuple(rows), last)
                continue
            due = last.due
            log.info("a call of turn %s was under way at the last end (%s): %s",
                     rows[0].turn, last.kind, to_json(due or {}))  # fmt: skip
            is_guess = due is not None and last.kind == SENT
            await self._close(tuple(rows), due, assumed=is_guess)

    async def settle_all(self) -> None:
        """Close what is on tape, each call as its answer ends."""
        async with asyncio.TaskGroup() as calls:
            for name, left in list(self._on_tape.items()):
                calls.create_task(self._settle(name, left))

    async def settled(self, name: str) -> None:
        """Returns when the call of this name is in the ledger, or after `SETTLE_S`."""
        left = self._on_tape.get(name)
        if left is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(left.is_settled.wait(), SETTLE_S)

    async def _settle(self, name: str, left: _Left) -> None:
        """What cannot be settled now, on a full disk say, is settled after the next start."""
        try:
            await self._settle_from_tape(name, left)
        except (ApplianceError, OSError) as error:
            log.warning("the call of turn %s stays promised: %s", left.rows[0].turn, error)
        left.is_settled.set()

    async def _settle_from_tape(self, name: str, left: _Left) -> None:
        told, heard = await self._tapes.due(name), left.heard
        if told is not None:
            due = None if told.usage is None else amounts_of(told.usage)
        else:
            due = heard.amounts if heard.kind != REFUSED else None
        is_guess = told is None and heard.kind == SENT
        turn = left.rows[0].turn
        log.info("a call of turn %s went on without us: %s", turn, to_json(due or {}))
        await asyncio.shield(self._close(left.rows, due, assumed=is_guess))
        del self._on_tape[name]

    async def _last_heard(self, reservations: set[str], since_ms: int) -> Mapping[str, _Heard]:
        """The last event of each that was heard of, and its amounts. The newest are read first."""
        heard: dict[str, _Heard] = {}
        before: int | None = None
        while events := await self._journal.read(
            STREAM, before=before, limit=PAGE, newest_first=True, kinds=(SENT, REFUSED, SEEN)
        ):
            for event in events:
                if event.body["reservation"] in reservations:
                    amounts = {
                        currency: int(event.body[currency.value])
                        for currency in (Currency.MICRO_USD, Currency.CLOUD_TOKENS)
                    }
                    last = _Heard(event.kind, bool(event.body.get("taped")), amounts)
                    heard.setdefault(event.body["reservation"], last)
            if events[-1].at_ms < since_ms:
                break
            before = events[-1].seq
        return heard
