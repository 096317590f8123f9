"""Money, cloud tokens and GPU time: reserved before a call, settled after it, exact over a crash.

A reservation is journalled before anything is sent and checked against every cap inside the
writer's transaction, so that two calls at once cannot both take the last cent. While the call runs
the provider's own figures are journalled as they become known (`seen`); a settlement replaces the
promise by the bill.

The hard case is a call whose end nobody here saw: cut, cancelled, timed out (due is what was last
heard of it), or alive when the process was killed (`left_calls`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from appliance.clock import Clock, new_id
from appliance.config.schema import Config
from appliance.errors import ApplianceError
from appliance.scheduler.amounts import Amounts, amounts_of, to_json
from appliance.scheduler.caps import Payer, limits, standing_limits
from appliance.scheduler.left_calls import (
    REFUSED,
    SEEN,
    SENT,
    STREAM,
    LeftCalls,
    NoTapes,
    Tapes,
)
from appliance.scheduler.mirror import Mirror
from appliance.store.journal import Draft, Journal
from appliance.store.ledger import Currency, EntryKind, Ledger, SpendRow
from appliance.types import Json, Usage

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Call:
    """A reservation that is still open."""

    rows: tuple[SpendRow, ...]
    turn_id: str
    guess: Usage | None = None
    """What was sent, and not yet refused or heard of."""
    seen: Usage | None = None
    is_taped: bool = False
    adopted: str = ""
    """The earlier call that asked for its answer, and is the one to be charged."""

    @property
    def reservation_id(self) -> str:
        return self.rows[0].reservation_id


class Hold:
    """What `turns.step` holds during one call. Closed once; a second close does nothing."""

    def __init__(self, budgets: Budgets, call: _Call) -> None:
        self._budgets = budgets
        self._call: _Call | None = call

    async def settle(self, usage: Usage) -> None:
        """The call ended and this is its bill."""
        call, self._call = self._call, None
        if call is not None:
            await self._budgets.close(call, None if call.adopted else usage)

    async def release(self) -> None:
        """The call ended without a bill: due is what the rule of the module says."""
        call, self._call = self._call, None
        if call is not None:
            await self._budgets.close(call, call.seen or call.guess, assumed=call.seen is None)


class Budgets:
    """Satisfies `turns.step.Spending`, `turns.places.Purse` and `engines.provider.meter`.

    `async with`: entering closes what a killed process left open and loads the mirror. What is
    still on its way to a tape is closed by `settle_left`.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        journal: Journal,
        ledger: Ledger,
        clock: Clock,
        tapes: Tapes | None = None,
    ) -> None:
        self._config = config
        self._journal = journal
        self._ledger = ledger
        self._clock = clock
        self._tapes = tapes or NoTapes()
        self._mirror = Mirror(config, ledger, clock)
        self._left = LeftCalls(journal, ledger, self._tapes, self._close)
        self._open: dict[str, _Call] = {}

    async def __aenter__(self) -> Self:
        await self._left.recover()
        await self._mirror.load()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    # --- turns.step.Spending --------------------------------------------------------------------

    async def reserve(
        self, *, agent: str, session_id: str, turn_id: str, micro_usd: int, cloud_tokens: int
    ) -> Hold:
        """Promise a call's worst case. On disk when it returns. Raises `BudgetExceeded` naming
        the cap it would pass."""
        amounts = {Currency.MICRO_USD: micro_usd, Currency.CLOUD_TOKENS: cloud_tokens}
        promise = asyncio.ensure_future(self._reserve(Payer(agent, session_id), turn_id, amounts))
        try:
            call = await asyncio.shield(promise)
        except asyncio.CancelledError:
            with suppress(ApplianceError):  # the caller is gone, and with it who would be told
                await asyncio.shield(self._close((await promise).rows, None, assumed=False))
            raise
        self._open[turn_id] = call
        return Hold(self, call)

    async def close(self, call: _Call, usage: Usage | None, *, assumed: bool = False) -> None:
        """Settle to the usage, or release if it is None. A cancelled caller does not stop it."""
        if self._open.get(call.turn_id) is call:
            del self._open[call.turn_id]
        amounts = None if usage is None else amounts_of(usage)
        await asyncio.shield(self._close(call.rows, amounts, assumed=assumed))
        if call.is_taped:
            self._tapes.forget(call.reservation_id)
        await self._left.settled(call.adopted)  # when a turn has ended, its cost is in the ledger

    async def settle_left(self) -> None:
        """Close what a killed process left on tape, each call as its answer ends."""
        await self._left.settle_all()

    # --- engines.provider.meter ----------------------------------------------------------------

    async def sent(self, turn_id: str, guess: Usage) -> str:
        """The turn's call is about to leave; the name of its tape, empty for none. Not on disk yet
        when it returns, but safe from a killed process."""
        call = self._open.get(turn_id)
        if call is not None:
            call.is_taped = await self._tapes.is_ready()
        await self._heard(turn_id, SENT, guess=guess)
        return call.reservation_id if call is not None and call.is_taped else ""

    async def adopted(self, turn_id: str, tape: str) -> None:
        """It was not sent: its answer is on the tape of an earlier call, which pays for it."""
        if (call := self._open.get(turn_id)) is not None:
            call.adopted = tape
        await self._heard(turn_id, REFUSED)

    async def refused(self, turn_id: str) -> None:
        """The turn's call was not taken."""
        await self._heard(turn_id, REFUSED)

    async def seen(self, turn_id: str, usage: Usage) -> None:
        """What the turn's call has cost so far, as its provider says."""
        await self._heard(turn_id, SEEN, seen=usage)

    async def _heard(
        self, turn_id: str, kind: str, *, guess: Usage | None = None, seen: Usage | None = None
    ) -> None:
        call = self._open.get(turn_id)
        if call is None:
            return
        if call.adopted and kind == SEEN:
            return
        call.guess, call.seen = guess, seen
        amounts = amounts_of(seen or guess or Usage())
        body: dict[str, Json] = {
            "reservation": call.reservation_id,
            "turn": turn_id,
            **to_json(amounts),
        }
        if call.is_taped:
            body["taped"] = True
        await self._journal.append(Draft(STREAM, kind, body), durable=False)

    # --- GPU time -------------------------------------------------------------------------------

    async def charge_gpu(self, *, agent: str, session_id: str, turn_id: str, gpu_ms: int) -> None:
        """Book slot time a local step has used. It is never refused here, since it is spent; the
        cap stops the next step (`gpu_ms_left`)."""
        rows = self._rows(Payer(agent, session_id), turn_id, {Currency.GPU_MS: gpu_ms})
        rows = tuple(replace(row, caps=()) for row in rows)
        settled = [_closing(row, EntryKind.SETTLE, gpu_ms, self._clock.wall_ms()) for row in rows]
        await self._journal.append(
            Draft(STREAM, "budget.gpu", {"agent": agent, "turn": turn_id, "gpu_ms": gpu_ms}),
            index=[*rows, *settled],
            durable=False,
        )
        self._mirror.book(rows, reserved=0, settled={Currency.GPU_MS: gpu_ms})
        await self._warn(Payer(agent, session_id))

    def gpu_ms_left(self, agent: str, session_id: str) -> int | None:
        return self._mirror.left(Currency.GPU_MS, Payer(agent, session_id))

    # --- turns.places.Purse ---------------------------------------------------------------------

    def left_micro_usd(self, agent: str, session_id: str) -> int | None:
        """The least that any cap leaves; 0 also where cloud tokens are used up; None: no cap."""
        payer = Payer(agent, session_id)
        if self._mirror.left(Currency.CLOUD_TOKENS, payer) == 0:
            return 0
        return self._mirror.left(Currency.MICRO_USD, payer)

    async def summary(self) -> dict[str, Any]:
        """For `appliance budget`: what was spent today, and every standing cap."""
        day = self._mirror.today
        rows = []
        for limit in standing_limits(self._config(), day):
            cap = limit.cap
            total = await self._ledger.total(limit.currency, cap.scope, cap.name, cap.period)
            rows.append(
                {
                    "scope": str(limit),
                    "currency": limit.currency.value,
                    "name": cap.name,
                    "period": cap.period,
                    "spent": total.settled,
                    "reserved": total.reserved,
                    "limit": cap.limit,
                }
            )
        today = await self._ledger.total(Currency.MICRO_USD, period=day)
        return {
            "today_micro_usd": today.settled,
            "reserved_micro_usd": today.reserved,
            "caps": rows,
        }

    # --- inside ---------------------------------------------------------------------------------

    async def _reserve(self, payer: Payer, turn_id: str, amounts: Amounts) -> _Call:
        rows = self._rows(payer, turn_id, amounts)
        body: dict[str, Json] = {
            "reservation": rows[0].reservation_id,
            "agent": payer.agent,
            "session": payer.session_id,
            "turn": turn_id,
            **to_json(amounts),
        }
        await self._journal.append(Draft(STREAM, "budget.reserved", body), index=rows)
        for row in rows:
            self._mirror.book((row,), reserved=row.amount, settled={})
        await self._warn(payer)
        return _Call(rows, turn_id)

    def _rows(self, payer: Payer, turn_id: str, amounts: Amounts) -> tuple[SpendRow, ...]:
        day = self._mirror.today
        caps = limits(self._config(), payer, day)
        reservation_id = new_id("hold")
        return tuple(
            SpendRow(
                id=new_id("spend"),
                reservation_id=reservation_id,
                kind=EntryKind.RESERVE,
                currency=currency,
                amount=amount,
                agent=payer.agent,
                session=payer.session_id,
                turn=turn_id,
                workflow="",
                day=day,
                at_ms=self._clock.wall_ms(),
                caps=tuple(limit.cap for limit in caps if limit.currency is currency),
            )
            for currency, amount in amounts.items()
        )

    async def _close(
        self,
        rows: tuple[SpendRow, ...],
        amounts: Amounts | None,
        *,
        assumed: bool,
    ) -> None:
        kind = EntryKind.RELEASE if amounts is None else EntryKind.SETTLE
        due = amounts or {}
        now_ms = self._clock.wall_ms()
        body: dict[str, Json] = {
            "reservation": rows[0].reservation_id,
            "agent": rows[0].agent,
            "session": rows[0].session,
            "turn": rows[0].turn,
            **to_json(due),
        }
        if assumed:
            body["assumed"] = True
        name = "budget.released" if amounts is None else "budget.settled"
        await self._journal.append(
            Draft(STREAM, name, body, turn=None if amounts is None else rows[0].turn),
            index=[_closing(row, kind, due.get(row.currency, 0), now_ms) for row in rows],
        )
        for row in rows:
            settled = {} if amounts is None else {row.currency: due.get(row.currency, 0)}
            self._mirror.book((row,), reserved=-row.amount, settled=settled)

    async def _warn(self, payer: Payer) -> None:
        """Say once per cap and period that it is nearly reached."""
        for limit in self._mirror.newly_near(payer):
            total = self._mirror.total(limit)
            log.warning("budget: %s is at %d of %d", limit, total.promised, limit.cap.limit)
            body = {"cap": str(limit), "promised": total.promised, "limit": limit.cap.limit}
            await self._journal.append(Draft(STREAM, "budget.warned", body), durable=False)


def _closing(row: SpendRow, kind: EntryKind, amount: int, at_ms: int) -> SpendRow:
    return replace(row, id=new_id("spend"), kind=kind, amount=amount, at_ms=at_ms, caps=())
