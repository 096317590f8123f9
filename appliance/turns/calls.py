"""Brings the tool calls of one step to their results: ask, intend, carry out, adopt.

The order of journal and effect is the whole point:

    approval.asked    on disk → a person decides, perhaps days and restarts later
    tool.intended     on disk → only now may the tool begin
    tool.completed            ← its result, or after a crash the result its runner kept

A call found `intended` after a restart is never simply run: it is *adopted*. Its detached runner
finished (take the result), still runs (wait), never began (begin), or died inside. In the last
case a call that is `read` or `idempotent` runs again, and any other is in doubt: asked about.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from appliance.clock import Clock, new_id
from appliance.tools.types import (
    Allow,
    Ask,
    Deny,
    InDoubt,
    Intent,
    NotStarted,
    ToolContext,
    ToolOutcome,
)
from appliance.turns import events as ev
from appliance.turns.live import LiveTurn
from appliance.turns.state import IN_DOUBT, CallState, CallStatus, TurnState
from appliance.types import Effect, TextBlock, ToolCallBlock, ToolResultBlock
from appliance.wire.native import block_to_json

PARALLEL_READS = 8
"""Reading calls of one step that run at once: enough to hide latency, few enough for one box."""

EXPIRED = "expired"
CHANGED = "what it would do has changed since it was allowed"


class Toolbox(Protocol):
    """What turns need of the tools room (`tools.registry.Toolbox`)."""

    def prepare(self, call: ToolCallBlock, ctx: ToolContext) -> Intent | ToolOutcome: ...

    def decide(self, intent: Intent, ctx: ToolContext) -> Allow | Ask | Deny: ...

    async def run(self, intent: Intent, ctx: ToolContext) -> ToolOutcome | InDoubt: ...

    async def adopt(
        self, intent: Intent, ctx: ToolContext
    ) -> ToolOutcome | InDoubt | NotStarted: ...

    def cancel(self, call_id: str, ctx: ToolContext) -> bool: ...

    def forget(self, call_id: str, ctx: ToolContext) -> None: ...


@dataclass(frozen=True, slots=True)
class CallRunner:
    """Carries out calls of one turn. `ready` is true when this daemon journalled the intent
    itself; false makes an intended call be adopted first."""

    turn: LiveTurn
    toolbox: Toolbox
    context: Callable[[TurnState, int], Awaitable[ToolContext]]
    clock: Clock
    approval_s: float
    intended_here: set[str]

    async def carry_out(self, step: int, calls: Sequence[CallState]) -> None:
        """Returns when every one of these calls has its `tool.completed`.

        Neighbouring reading calls run side by side; everything else one after the other, in the
        order the model asked for them.
        """
        ctx = await self.context(self.turn.state, step)
        for reads, group in groupby(calls, key=lambda call: self._is_read(call, ctx)):
            if reads:
                gate = asyncio.Semaphore(PARALLEL_READS)
                async with asyncio.TaskGroup() as tasks:
                    for call in group:
                        tasks.create_task(self._gated(gate, step, call.call.call_id))
            else:
                for call in group:
                    await self._finish(step, call.call.call_id)

    async def _gated(self, gate: asyncio.Semaphore, step: int, call_id: str) -> None:
        async with gate:
            await self._finish(step, call_id)

    def _is_read(self, call: CallState, ctx: ToolContext) -> bool:
        if call.status not in (CallStatus.WANTED, CallStatus.INTENDED):
            return False
        intent = self.toolbox.prepare(call.call, ctx)
        return (
            isinstance(intent, Intent)
            and intent.effect is Effect.READ
            and isinstance(self.toolbox.decide(intent, ctx), Allow)
        )

    async def _finish(self, step: int, call_id: str) -> None:
        """One call, moved on by its status until it is completed."""
        ctx = await self.context(self.turn.state, step)
        while (call := self._call(call_id)).status is not CallStatus.COMPLETED:
            intent = self.toolbox.prepare(call.call, ctx)
            if isinstance(intent, ToolOutcome):
                await self._complete(step, call, intent)
                continue
            match call.status:
                case CallStatus.WANTED:
                    await self._begin(step, call, intent, ctx)
                case CallStatus.ALLOWED:
                    await self._as_allowed(step, call, intent, ctx)
                case CallStatus.DENIED:
                    await self._complete(step, call, _refusal(call, intent))
                case CallStatus.INTENDED:
                    await self._run_or_adopt(step, call, intent, ctx)
                case CallStatus.IN_DOUBT if call.approval is None:
                    await self._ask(step, intent, Ask(f"{IN_DOUBT}"), reason=IN_DOUBT)
                case CallStatus.ASKED | CallStatus.IN_DOUBT:
                    await self._await_answer(call)

    async def _begin(self, step: int, call: CallState, intent: Intent, ctx: ToolContext) -> None:
        match self.toolbox.decide(intent, ctx):
            case Allow():
                await self._intend(step, intent)
            case Ask() as ask:
                await self._ask(step, intent, ask)
            case Deny(reason=reason):
                await self._complete(step, call, _denied(call, reason))

    async def _as_allowed(
        self, step: int, call: CallState, intent: Intent, ctx: ToolContext
    ) -> None:
        """What a person allowed runs exactly as it was shown. Where that is no longer so (its file
        has changed, its shell reaches more hosts) they are asked again; and what was forbidden
        since stays forbidden."""
        shown = call.approval
        assert shown is not None
        verdict = self.toolbox.decide(intent, ctx)
        if isinstance(verdict, Deny):
            await self._complete(step, call, _denied(call, verdict.reason))
        elif (shown.call_hash, shown.summary) != (intent.call_hash, intent.summary):
            await self._ask(step, intent, Ask(CHANGED), reason=IN_DOUBT if call.doubt else CHANGED)
        else:
            await self._intend(step, intent)

    async def _intend(self, step: int, intent: Intent) -> None:
        self.intended_here.add(intent.call_id)
        await self.turn.append(
            ev.ToolIntended(
                step=step,
                call_id=intent.call_id,
                tool=intent.tool,
                effect=intent.effect.value,
                summary=intent.summary,
                call_hash=intent.call_hash,
            )
        )

    async def _run_or_adopt(
        self, step: int, call: CallState, intent: Intent, ctx: ToolContext
    ) -> None:
        try:
            outcome = await self._outcome(intent, ctx)
        except asyncio.CancelledError:
            if self.turn.is_cancelled:  # by a person; a stopping daemon leaves runners running
                self.toolbox.cancel(intent.call_id, ctx)
            raise
        if isinstance(outcome, ToolOutcome):
            await self._complete(step, call, outcome)
            self.toolbox.forget(intent.call_id, ctx)
        else:
            await self.turn.append(
                ev.ToolInDoubt(
                    step=step, call_id=intent.call_id, tool=intent.tool, reason=outcome.reason
                )
            )

    async def _outcome(self, intent: Intent, ctx: ToolContext) -> ToolOutcome | InDoubt:
        outcome: ToolOutcome | InDoubt | NotStarted = NotStarted(intent.call_id)
        if intent.call_id in self.intended_here:
            self.intended_here.discard(intent.call_id)
        else:
            outcome = await self.toolbox.adopt(intent, ctx)
        may_repeat = isinstance(outcome, InDoubt) and intent.effect is not Effect.ONCE
        if isinstance(outcome, NotStarted) or may_repeat:
            return await self.toolbox.run(intent, ctx)
        return outcome

    async def _ask(self, step: int, intent: Intent, ask: Ask, reason: str = "") -> None:
        await self.turn.append(
            ev.ApprovalAsked(
                approval_id=new_id("appr"),
                step=step,
                call_id=intent.call_id,
                tool=intent.tool,
                summary=intent.summary,
                call_hash=intent.call_hash,
                reason=reason or ask.question,
                expires_ms=self.clock.wall_ms() + int(self.approval_s * 1000),
            )
        )

    async def _await_answer(self, call: CallState) -> None:
        assert call.approval is not None
        expires_ms = call.approval.expires_ms
        left_s = None if expires_ms is None else (expires_ms - self.clock.wall_ms()) / 1000
        self.turn.decided.clear()
        try:
            await asyncio.wait_for(self.turn.decided.wait(), left_s)
        except TimeoutError:
            await self.turn.decide(
                ev.ApprovalAnswered(
                    approval_id=call.approval.approval_id,
                    call_id=call.call.call_id,
                    decision=EXPIRED,
                    by_uid=-1,
                )
            )

    async def _complete(self, step: int, call: CallState, outcome: ToolOutcome) -> None:
        result = ToolResultBlock(
            call.call.call_id, outcome.content, outcome.is_error, outcome.label
        )
        await self.turn.append(
            ev.ToolCompleted(
                step=step,
                call_id=call.call.call_id,
                tool=call.call.name,
                result=block_to_json(result),
                duration_ms=outcome.duration_ms,
                full_output_path=outcome.full_output_path,
                waited_ms=outcome.waited_ms,
                spent_micro_usd=outcome.spent_micro_usd,
            )
        )

    def _call(self, call_id: str) -> CallState:
        step = self.turn.state.steps[-1]
        return next(call for call in step.calls if call.call.call_id == call_id)


def _denied(call: CallState, reason: str) -> ToolOutcome:
    note = f"This call was not allowed and did not run: {reason}"
    return ToolOutcome(call.call.call_id, (TextBlock(note),), is_error=True)


def _refusal(call: CallState, intent: Intent) -> ToolOutcome:
    answer = call.answer
    assert answer is not None
    if call.doubt:
        note = (
            "Nobody knows whether this call took effect: the machine stopped inside it. It was "
            "not repeated. Look at what is there before you go on."
        )
    elif answer.decision == EXPIRED:
        note = "Nobody answered in time whether this call may run, so it did not run."
    else:
        note = "A person refused this call; it did not run."
    if answer.note:
        note += f" They said: {answer.note}"
    return ToolOutcome(intent.call_id, (TextBlock(note),), is_error=True)
