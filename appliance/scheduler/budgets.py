"""Money, cloud tokens and GPU time: reserved before a call, settled after it, exact over a crash.

A reservation is journalled before anything is sent and checked against every cap inside the
writer's transaction, so that two calls at once cannot both take the last cent. While the call runs
the provider's own figures are journalled as they become known (`seen`); a settlement replaces the
promise by the bill.

The hard case is a call whose end nobody here saw: cut, cancelled, timed out, or alive when the
process was killed. The answers of paid calls are on tape (`egress.courier`), written by a process
that outlives this one; a call that a killed daemon left is settled to what its tape says, which is
the provider's own count, when the answer has ended. Until then the reservation stands. Without a
tape, or where it tells nothing, what the journal last heard decides:

- it was never sent, or the provider refused it: nothing is due;
- it had begun: due is what was last seen;
- it was sent, and nothing was heard: due is the prompt, as guessed from its length (`assumed` in
  the event). A provider stops generating when the connection goes.

The other choice for the last, the whole reservation, is safe and wrong by a hundred times where
answers are short and their limit is long: after a few crashes a day's cap would be gone unspent.

Totals are mirrored in memory for the router, which asks synchronously what is left; the mirror
informs, the ledger decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Protocol, Self

from appliance.clock import Clock, new_id
from appliance.config.schema import Config
from appliance.engines.provider.bill import Due
from appliance.errors import ApplianceError
from appliance.scheduler.caps import Limit, Payer, day_of, limits, standing_limits
from appliance.store.journal import Draft, Journal
from appliance.store.ledger import Currency, EntryKind, Ledger, Scope, SpendRow, Total
from appliance.types import Json, Usage

log = logging.getLogger(__name__)

STREAM = "budget"
SETTLE_S = 5.0
"""How long a call whose answer was adopted waits for the one that pays for it to be settled: both
come to the end of the same tape."""

PAGE = 1_000
"""Events read at once when a start looks back for what was heard."""

HEARD = ("budget.sent", "budget.refused", "budget.seen")


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

    kind: str = "budget.refused"
    is_taped: bool = False
    amounts: dict[Currency, int] = field(default_factory=dict)

    @property
    def due(self) -> dict[Currency, int] | None:
        """What is due by that alone. No tape is made after its request left: taped, and no tape
        there, is not sent."""
        if self.kind == "budget.refused" or (self.kind == "budget.sent" and self.is_taped):
            return None
        return self.amounts


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


@dataclass(frozen=True, slots=True, eq=False)
class _Left:
    """A reservation of a killed daemon whose answer is on tape, or on its way there."""

    rows: tuple[SpendRow, ...]
    heard: _Heard
    is_settled: asyncio.Event = field(default_factory=asyncio.Event)


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
        self._on_tape: dict[str, _Left] = {}
        self._open: dict[str, _Call] = {}
        self._totals: dict[tuple[Currency, Scope, str, str], Total] = {}
        self._warned: set[Limit] = set()

    async def __aenter__(self) -> Self:
        await self._recover()
        await self._load()
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
        amounts = None if usage is None else _amounts(usage)
        await asyncio.shield(self._close(call.rows, amounts, assumed=assumed))
        if call.is_taped:
            self._tapes.forget(call.reservation_id)
        left = self._on_tape.get(call.adopted)
        if left is not None:  # when a turn has ended, what it cost is in the ledger
            with suppress(TimeoutError):
                await asyncio.wait_for(left.is_settled.wait(), SETTLE_S)

    async def settle_left(self) -> None:
        """Close what a killed process left on tape, each call as its answer ends."""
        async with asyncio.TaskGroup() as calls:
            for name, left in list(self._on_tape.items()):
                calls.create_task(self._settle_left(name, left))

    # --- engines.provider.meter ----------------------------------------------------------------

    async def sent(self, turn_id: str, guess: Usage) -> str:
        """The turn's call is about to leave; the name of its tape, empty for none. Not on disk yet
        when it returns, but safe from a killed process."""
        call = self._open.get(turn_id)
        if call is not None:
            call.is_taped = await self._tapes.is_ready()
        await self._heard(turn_id, "budget.sent", guess=guess)
        return call.reservation_id if call is not None and call.is_taped else ""

    async def adopted(self, turn_id: str, tape: str) -> None:
        """It was not sent: its answer is on the tape of an earlier call, which pays for it."""
        if (call := self._open.get(turn_id)) is not None:
            call.adopted = tape
        await self._heard(turn_id, "budget.refused")

    async def refused(self, turn_id: str) -> None:
        """The turn's call was not taken."""
        await self._heard(turn_id, "budget.refused")

    async def seen(self, turn_id: str, usage: Usage) -> None:
        """What the turn's call has cost so far, as its provider says."""
        await self._heard(turn_id, "budget.seen", seen=usage)

    async def _heard(
        self, turn_id: str, kind: str, *, guess: Usage | None = None, seen: Usage | None = None
    ) -> None:
        call = self._open.get(turn_id)
        if call is None:
            return
        if call.adopted and kind == "budget.seen":
            return
        call.guess, call.seen = guess, seen
        amounts = _amounts(seen or guess or Usage())
        body: dict[str, Json] = {
            "reservation": call.reservation_id,
            "turn": turn_id,
            **_amounts_json(amounts),
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
        self._book(rows, reserved=0, settled={Currency.GPU_MS: gpu_ms})
        await self._warn(Payer(agent, session_id))

    def gpu_ms_left(self, agent: str, session_id: str) -> int | None:
        return self._left(Currency.GPU_MS, agent, session_id)

    # --- turns.places.Purse ---------------------------------------------------------------------

    def left_micro_usd(self, agent: str, session_id: str) -> int | None:
        """The least that any cap leaves; 0 also where cloud tokens are used up; None: no cap."""
        if self._left(Currency.CLOUD_TOKENS, agent, session_id) == 0:
            return 0
        return self._left(Currency.MICRO_USD, agent, session_id)

    async def summary(self) -> dict[str, Any]:
        """For `appliance budget`: what was spent today, and every standing cap."""
        day = self._today()
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

    async def _reserve(self, payer: Payer, turn_id: str, amounts: dict[Currency, int]) -> _Call:
        rows = self._rows(payer, turn_id, amounts)
        body: dict[str, Json] = {
            "reservation": rows[0].reservation_id,
            "agent": payer.agent,
            "session": payer.session_id,
            "turn": turn_id,
            **_amounts_json(amounts),
        }
        await self._journal.append(Draft(STREAM, "budget.reserved", body), index=rows)
        for row in rows:
            self._book((row,), reserved=row.amount, settled={})
        await self._warn(payer)
        return _Call(rows, turn_id)

    def _rows(
        self, payer: Payer, turn_id: str, amounts: dict[Currency, int]
    ) -> tuple[SpendRow, ...]:
        day = self._today()
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
        amounts: dict[Currency, int] | None,
        *,
        assumed: bool,
    ) -> None:
        kind = EntryKind.RELEASE if amounts is None else EntryKind.SETTLE
        due = amounts or {}
        now_ms = self._clock.wall_ms()
        body: dict[str, Json] = {
            "reservation": rows[0].reservation_id,
            "agent": rows[0].agent,
            "turn": rows[0].turn,
            **_amounts_json(due),
        }
        if assumed:
            body["assumed"] = True
        name = "budget.released" if amounts is None else "budget.settled"
        await self._journal.append(
            Draft(STREAM, name, body),
            index=[_closing(row, kind, due.get(row.currency, 0), now_ms) for row in rows],
        )
        for row in rows:
            settled = {} if amounts is None else {row.currency: due.get(row.currency, 0)}
            self._book((row,), reserved=-row.amount, settled=settled)

    async def _recover(self) -> None:
        """Close what a killed process left open, by the rule of the module."""
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
                     rows[0].turn, last.kind, _amounts_json(due or {}))  # fmt: skip
            is_guess = due is not None and last.kind == "budget.sent"
            await self._close(tuple(rows), due, assumed=is_guess)

    async def _settle_left(self, name: str, left: _Left) -> None:
        """What cannot be settled now, on a full disk say, is settled after the next start."""
        try:
            await self._settle_from_tape(name, left)
        except (ApplianceError, OSError) as error:
            log.warning("the call of turn %s stays promised: %s", left.rows[0].turn, error)
        left.is_settled.set()

    async def _settle_from_tape(self, name: str, left: _Left) -> None:
        told, heard = await self._tapes.due(name), left.heard
        if told is not None:
            due = None if told.usage is None else _amounts(told.usage)
        else:
            due = heard.amounts if heard.kind != "budget.refused" else None
        is_guess = told is None and heard.kind == "budget.sent"
        turn = left.rows[0].turn
        log.info("a call of turn %s went on without us: %s", turn, _amounts_json(due or {}))
        await asyncio.shield(self._close(left.rows, due, assumed=is_guess))
        del self._on_tape[name]

    async def _last_heard(self, reservations: set[str], since_ms: int) -> dict[str, _Heard]:
        """The last event of each that was heard of, and its amounts. The newest are read first."""
        heard: dict[str, _Heard] = {}
        before: int | None = None
        while events := await self._journal.read(
            STREAM, before=before, limit=PAGE, newest_first=True, kinds=HEARD
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

    async def _load(self) -> None:
        day = self._today()
        for currency in Currency:
            for scope, periods in (
                (Scope.ALL, (day, day[:7])),
                (Scope.AGENT, (day, day[:7])),
                (Scope.SESSION, ("",)),
            ):
                for period in periods:
                    found = await self._ledger.totals(currency, scope, period)
                    for name, total in found.items():
                        self._totals[currency, scope, name, period] = total
        for limit in standing_limits(self._config(), day):
            if self._share(limit) >= self._config().budgets.warn_share:
                self._warned.add(limit)

    def _book(
        self, rows: tuple[SpendRow, ...], *, reserved: int, settled: dict[Currency, int]
    ) -> None:
        for row in rows:
            for scope, name in (
                (Scope.ALL, ""), (Scope.AGENT, row.agent), (Scope.SESSION, row.session)
            ):  # fmt: skip
                for period in ("", row.day[:7], row.day):
                    key = row.currency, scope, name, period
                    was = self._totals.get(key, Total(0, 0))
                    more = settled.get(row.currency, 0)
                    self._totals[key] = Total(was.reserved + reserved, was.settled + more)

    def _left(self, currency: Currency, agent: str, session_id: str) -> int | None:
        found = limits(self._config(), Payer(agent, session_id), self._today())
        return min(
            (max(each.cap.limit - self._total(each).promised, 0)
             for each in found if each.currency is currency),
            default=None,
        )  # fmt: skip

    def _total(self, limit: Limit) -> Total:
        cap = limit.cap
        key = limit.currency, cap.scope, cap.name, cap.period
        return self._totals.get(key, Total(0, 0))

    def _share(self, limit: Limit) -> float:
        return self._total(limit).promised / limit.cap.limit if limit.cap.limit else 1.0

    async def _warn(self, payer: Payer) -> None:
        """Say once per cap and period that it is nearly reached."""
        share = self._config().budgets.warn_share
        for limit in limits(self._config(), payer, self._today()):
            if limit in self._warned or self._share(limit) < share:
                continue
            self._warned.add(limit)
            total = self._total(limit)
            log.warning("budget: %s is at %d of %d", limit, total.promised, limit.cap.limit)
            body = {"cap": str(limit), "promised": total.promised, "limit": limit.cap.limit}
            await self._journal.append(Draft(STREAM, "budget.warned", body), durable=False)

    def _today(self) -> str:
        return day_of(self._clock.wall_ms())


def _amounts(usage: Usage) -> dict[Currency, int]:
    return {
        Currency.MICRO_USD: usage.spend_micro_usd,
        Currency.CLOUD_TOKENS: usage.prompt_tokens + usage.output_tokens,
    }


def _amounts_json(amounts: dict[Currency, int]) -> dict[str, Json]:
    return {currency.value: amount for currency, amount in amounts.items()}


def _closing(row: SpendRow, kind: EntryKind, amount: int, at_ms: int) -> SpendRow:
    return replace(row, id=new_id("spend"), kind=kind, amount=amount, at_ms=at_ms, caps=())
