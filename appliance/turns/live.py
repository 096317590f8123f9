"""One unfinished turn in RAM: its folded state and the only way to change it, an append."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from appliance.clock import Clock
from appliance.store.approvals import PENDING, ApprovalRow
from appliance.store.index import TurnRow
from appliance.store.journal import Draft, Event, IndexRow, Journal
from appliance.turns import events as ev
from appliance.turns.state import QUESTION, TurnState, apply, fold
from appliance.turns.stream import Streams
from appliance.types import Delta
from appliance.wire.native import usage_to_json

DURABLE_KINDS = frozenset(
    {
        ev.TurnAccepted.kind,
        ev.ToolIntended.kind,
        ev.ToolCompleted.kind,
        ev.ApprovalAsked.kind,
        ev.ApprovalAnswered.kind,
        ev.QuestionAsked.kind,
        ev.QuestionAnswered.kind,
        *ev.TERMINAL_KINDS,
    }
)
"""What must be on disk before anything follows from it. The rest survives a crash of the daemon
as it is, and after a power cut is simply done again."""


ENDED = "ended"
"""`ApprovalRow.status` of what was never answered because its turn came to an end."""


class LiveTurn:
    """The owner of one turn's state. Its loop task appends; others only answer what it asked.

    An append is shielded: a turn that is being cancelled still writes whole events.
    """

    def __init__(
        self,
        journal: Journal,
        streams: Streams,
        clock: Clock,
        state: TurnState,
        idempotency_key: str | None,
    ) -> None:
        self.state = state
        self.decided = asyncio.Event()
        """Set when an approval of this turn was answered; who waits clears it first."""
        self.is_cancelled = False
        """A person ended it: what it has running is to be ended too."""
        self._journal = journal
        self._streams = streams
        self._clock = clock
        self._key = idempotency_key
        self._charged_seq = state.last_seq
        self._order = asyncio.Lock()
        self._expected: dict[str, asyncio.Future[ev.QuestionAnswered]] = {}

    @property
    def turn_id(self) -> str:
        return self.state.turn_id

    async def append(self, *bodies: ev.Body) -> None:
        """Journal these, fold them in and tell the followers. An end is told with all that the
        turn used. Raises `StoreError`."""
        await asyncio.shield(self._append(bodies))

    async def decide(self, body: ev.ApprovalAnswered, *rows: IndexRow) -> bool:
        """Journal the answer to an approval, with rows that follow from it; the first one only.
        Returns whether it was that."""
        return await asyncio.shield(self._decide(body, rows))

    async def _decide(self, body: ev.ApprovalAnswered, rows: tuple[IndexRow, ...]) -> bool:
        async with self._order:
            if self.state.is_finished or not _waits_for(self.state, body.approval_id):
                return False
            await self._append_in_order((body,), rows)
            self.decided.set()
            return True

    async def _append(self, bodies: tuple[ev.Body, ...]) -> None:
        async with self._order:
            if any(body.kind in ev.TERMINAL_KINDS for body in bodies):
                await self._fold_charges()
                bodies = tuple(self._with_usage(body) for body in bodies)
            await self._append_in_order(bodies)

    async def see_charges(self) -> None:
        """Fold in what the ledger has come to say of the turn's calls. Raises `StoreError`."""
        async with self._order:
            await self._fold_charges()

    async def _fold_charges(self) -> None:
        charges = await self._journal.read_turn(
            self.turn_id, after=self._charged_seq, kinds=(ev.Charged.kind,)
        )
        if charges:
            self._charged_seq = charges[-1].seq
            self._fold(charges)

    def _with_usage(self, body: ev.Body) -> ev.Body:
        if body.kind not in ev.TERMINAL_KINDS:
            return body
        return body.model_copy(update={"usage": usage_to_json(self.state.usage)})

    async def _append_in_order(
        self, bodies: tuple[ev.Body, ...], rows: tuple[IndexRow, ...] = ()
    ) -> None:
        state = self.state
        drafts = [body.draft(state.session_id, state.turn_id) for body in bodies]
        after = _foresee(state, drafts)
        events = await self._journal.append(
            *drafts,
            index=[*self._index_rows(state, after, bodies), *rows],
            durable=any(body.kind in DURABLE_KINDS for body in bodies),
        )
        self._fold(events)

    async def ask(self, question: ev.QuestionAsked) -> asyncio.Future[ev.QuestionAnswered]:
        """Journal a question of a server; the future has the answer once that is on disk."""
        answer: asyncio.Future[ev.QuestionAnswered] = asyncio.get_running_loop().create_future()
        self._expected[question.approval_id] = answer
        await self.append(question)
        return answer

    async def answer(self, body: ev.QuestionAnswered) -> bool:
        """Journal the answer to a question; the first one only. Returns whether it was that."""
        return await asyncio.shield(self._answer(body))

    async def _answer(self, body: ev.QuestionAnswered) -> bool:
        async with self._order:
            waits = any(each.approval_id == body.approval_id for each in self.state.questions)
            if self.state.is_finished or not waits:
                return False
            await self._append_in_order((body,))
            waiting = self._expected.pop(body.approval_id, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(body)
            return True

    def say(self, step: int, delta: Delta) -> None:
        self._streams.publish_delta(self.turn_id, step, delta)

    async def reload(self) -> None:
        """Fold the journal anew; after the store failed, RAM may be ahead of or behind it."""
        state = await load_turn(self._journal, self.turn_id)
        assert state is not None
        self.state, self._charged_seq = state, state.last_seq

    def _fold(self, events: Iterable[Event]) -> None:
        for event in events:
            self.state = apply(self.state, event)
            self._streams.publish_event(event)

    def _index_rows(
        self, before: TurnState, after: TurnState, bodies: tuple[ev.Body, ...]
    ) -> list[IndexRow]:
        rows: list[IndexRow] = []
        if after.status is not before.status:
            rows.append(turn_row(after, self._key, self._clock.wall_ms()))
        for body in bodies:
            if isinstance(body, ev.ApprovalAsked):
                rows.append(approval_row(after, body, self._clock.wall_ms()))
            elif isinstance(body, ev.ApprovalAnswered):
                asked = next(
                    call.approval
                    for call in before.steps[-1].calls
                    if call.approval and call.approval.approval_id == body.approval_id
                )
                row = approval_row(before, asked, before.accepted_ms)
                rows.append(replace(row, status=body.decision, decided_by=body.by_uid))
            elif isinstance(body, ev.QuestionAsked):
                rows.append(question_row(after, body, self._clock.wall_ms()))
            elif isinstance(body, ev.QuestionAnswered):
                wanted = body.approval_id
                question = next(each for each in before.questions if each.approval_id == wanted)
                row = question_row(before, question, before.accepted_ms)
                rows.append(replace(row, status=body.decision, decided_by=body.by_uid))
            elif body.kind in ev.TERMINAL_KINDS:
                rows += [replace(row, status=ENDED) for row in _pending_rows(before)]
        return rows


def _waits_for(state: TurnState, approval_id: str) -> bool:
    calls = state.steps[-1].calls if state.steps else ()
    return any(
        call.answer is None and call.approval is not None
        and call.approval.approval_id == approval_id
        for call in calls
    )  # fmt: skip


def _pending_rows(state: TurnState) -> list[ApprovalRow]:
    """Of everything this turn still asks a person."""
    calls = state.steps[-1].calls if state.steps else ()
    asked = [call.approval for call in calls if call.approval and call.answer is None]
    open_calls = [approval_row(state, each, state.accepted_ms) for each in asked]
    return open_calls + [question_row(state, each, state.accepted_ms) for each in state.questions]


def approval_row(state: TurnState, asked: ev.ApprovalAsked, now_ms: int) -> ApprovalRow:
    """The derived row of a question that was just asked."""
    return ApprovalRow(
        approval_id=asked.approval_id,
        turn=state.turn_id,
        session=state.session_id,
        agent=state.accepted.agent,
        call_id=asked.call_id,
        tool=asked.tool,
        summary=asked.summary,
        reason=asked.reason,
        call_hash=asked.call_hash,
        status=PENDING,
        created_ms=now_ms,
        expires_ms=asked.expires_ms,
    )


def question_row(state: TurnState, asked: ev.QuestionAsked, now_ms: int) -> ApprovalRow:
    """The derived row of a server's question: it stands among the approvals."""
    return ApprovalRow(
        approval_id=asked.approval_id,
        turn=state.turn_id,
        session=state.session_id,
        agent=state.accepted.agent,
        call_id="",
        tool=asked.server,
        summary=asked.message,
        reason=QUESTION,
        call_hash="",
        status=PENDING,
        created_ms=now_ms,
        expires_ms=asked.expires_ms,
    )


def turn_row(state: TurnState, idempotency_key: str | None, now_ms: int | None = None) -> TurnRow:
    """The derived index row of a turn in this state."""
    return TurnRow(
        turn_id=state.turn_id,
        session_id=state.session_id,
        agent=state.accepted.agent,
        status=state.status.value,
        owner_uid=state.accepted.owner_uid,
        idempotency_key=idempotency_key,
        created_ms=state.accepted_ms,
        updated_ms=now_ms or state.ended_ms or state.accepted_ms,
        parent_turn=state.accepted.parent_turn,
    )


async def read_turn(journal: Journal, turn_id: str) -> list[Event]:
    """All events of a turn, in order."""
    events: list[Event] = []
    while True:
        chunk = await journal.read_turn(
            turn_id, after=events[-1].seq if events else 0, limit=_READ_CHUNK
        )
        events += chunk
        if len(chunk) < _READ_CHUNK:
            return events


async def load_turn(journal: Journal, turn_id: str) -> TurnState | None:
    """The state of a turn as the journal has it; None if it has none. A long fold takes a thread,
    so that nobody else waits for it."""
    events = await read_turn(journal, turn_id)
    if not events:
        return None
    if len(events) <= FOLD_HERE_MAX:
        return fold(events)
    return await asyncio.to_thread(fold, events)


_READ_CHUNK = 2000
FOLD_HERE_MAX = 200
"""Events folded on the loop: about 10 ms."""


def _foresee(state: TurnState, drafts: Iterable[Draft]) -> TurnState:
    """The state these events will lead to, so that the index row goes into the same commit."""
    for draft in drafts:
        state = apply(
            state,
            Event(
                seq=state.last_seq + 1,
                stream=draft.stream,
                kind=draft.kind,
                body=dict(draft.body),
                turn=draft.turn,
                version=draft.version,
                at_ms=state.accepted_ms,
            ),
        )
    return state
