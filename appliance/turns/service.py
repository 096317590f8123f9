"""Sessions and turns as the API sees them: create, start, follow, cancel, answer, recover.

Acknowledged means on disk: `start` returns only after `turn.accepted` is fsynced. Each session
runs one turn at a time, in the order of acceptance; sessions run side by side. Every turn is one
task of one group, with a wall around it: what fails inside fails that turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from appliance.clock import Clock, new_id
from appliance.config.schema import Config
from appliance.errors import BadRequest, Conflict, NotFound, Overloaded
from appliance.store.approvals import ApprovalRow, Approvals
from appliance.store.index import Index, SessionRow
from appliance.store.journal import Event, IndexRow, Journal
from appliance.turns import events as ev
from appliance.turns import questions
from appliance.turns.live import LiveTurn, load_turn, read_turn, turn_row
from appliance.turns.running import Running, TurnRunner
from appliance.turns.state import QUESTION, UNFINISHED, TurnState, apply
from appliance.turns.stream import Item, Streams
from appliance.types import Json, Label, Message, highest
from appliance.wire.native import message_to_json

ASKER_ENDED = "the turn that asked for it has ended"
UNFINISHED_MAX = 100_000
"""More than any configuration allows at once, so that all are taken up again."""

CANCEL_S = 2.0
"""Waited for the end of a cancelled turn to be journalled: an answer that a crash takes back would
be none. A full disk is not waited for."""

DECISIONS = ("allow_once", "allow_always", "reject_once", "reject_always")


@dataclass(frozen=True, slots=True)
class StartTurn:
    """A request for a turn. `session_id` None opens a session; `key` makes it idempotent per
    owner: the same key returns the first turn."""

    agent: str
    message: Message
    owner_uid: int
    session_id: str | None = None
    key: str | None = None
    label: Label | None = None
    priority: int | None = None
    policy: str | None = None
    model: str | None = None
    limits: ev.LimitOverrides = ev.LimitOverrides()
    parent_turn: str | None = None
    depth: int = 0
    workspace: str = ""
    bare: ev.Bare | None = None


@dataclass(frozen=True, slots=True)
class Started:
    turn_id: str
    session_id: str
    is_repeat: bool = False


class Turns:
    """The room's front. Enter recovers nothing by itself: call `recover` once the rooms stand."""

    def __init__(
        self,
        journal: Journal,
        index: Index,
        approvals: Approvals,
        config: Callable[[], Config],
        run: TurnRunner,
        clock: Clock,
        standing: Callable[[TurnState, ApprovalRow, str, int], Sequence[IndexRow]],
    ) -> None:
        """`standing` gives the rows of a decision that holds for good (allow_always)."""
        self.streams = Streams(journal)
        self._journal = journal
        self._index = index
        self._approvals = approvals
        self._config = config
        self._clock = clock
        self._standing = standing
        self._running = Running(journal, self.streams, run, clock)
        self._answering = asyncio.Lock()
        self._by_key: dict[tuple[int, str], asyncio.Lock] = {}
        self.is_draining = False

    async def __aenter__(self) -> Self:
        await self._running.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.is_draining = True
        await self._running.__aexit__(kind, error, trace)

    async def drain(self, within_s: float, hurry: asyncio.Event) -> None:
        """Accept nothing more, let running steps finish for `within_s` or until `hurry` is set,
        park the rest, and end their followers' streams. A person is not waited for."""
        self.is_draining = True
        await self._running.drain(within_s, hurry)
        self.streams.close()

    @property
    def unfinished_count(self) -> int:
        return len(self._running)

    # --- starting -------------------------------------------------------------------------------

    async def create_session(
        self, agent: str, owner_uid: int, title: str = "", label: Label | None = None
    ) -> SessionRow:
        config = self._agent_config(agent)
        created = ev.SessionCreated(
            agent=agent,
            owner_uid=owner_uid,
            title=title,
            label=highest(label or Label.PUBLIC, config.agents[agent].label).value,
        )
        now_ms = self._clock.wall_ms()
        row = SessionRow(new_id("ses"), agent, owner_uid, title, now_ms, now_ms, "open")
        draft = created.draft(row.session_id, None)
        await self._journal.append(draft, index=(row,), opens_work=True)
        return row

    async def start(self, request: StartTurn) -> Started:
        """Accept a turn. Returns once it is on disk; raises `NotFound`, `BadRequest`,
        `Overloaded`, `StoreError`, `Conflict` while draining."""
        if self.is_draining:
            raise Conflict("the daemon is stopping", hint="try again after its restart")
        most = self._config().daemon.turns_max
        if len(self._running) >= most:
            raise Overloaded(
                f"{most} turns are unfinished",
                hint="wait, cancel some (appliance turns), or raise [daemon] turns_max",
                retry_after_s=30,
            )
        if request.key is None:
            return await self._start(request)
        name = (request.owner_uid, request.key)
        async with self._by_key.setdefault(name, asyncio.Lock()):
            try:
                earlier = await self._index.turn_by_key(*name)
                if earlier is not None:
                    return Started(earlier.turn_id, earlier.session_id, is_repeat=True)
                return await self._start(request)
            finally:
                self._by_key.pop(name, None)

    async def _start(self, request: StartTurn) -> Started:
        config = self._agent_config(request.agent)
        self._check_overrides(config, request)
        session = await self._session_of(request)
        label = highest(
            request.label or Label.PUBLIC,
            request.message.label,
            config.agents[request.agent].label,
            await self._least_label(session.session_id),
        )
        accepted = ev.TurnAccepted(
            agent=request.agent,
            owner_uid=request.owner_uid,
            message=message_to_json(request.message),
            label=label.value,
            priority=request.priority,
            policy=request.policy,
            model=request.model,
            limits=request.limits,
            config_revision=config.revision,
            parent_turn=request.parent_turn,
            depth=request.depth,
            workspace=request.workspace,
            bare=request.bare,
        )
        turn_id = new_id("turn")
        self.streams.open(turn_id)
        accepting = asyncio.ensure_future(self._accept(accepted, session, turn_id, request.key))
        try:
            self._begin(await asyncio.shield(accepting), request.key)
        except asyncio.CancelledError:
            # The append goes on, and a turn that is on disk runs: else nothing would end it, not
            # even `cancel`, which cancels what was asked for by the turn that is waiting here.
            self._begin(await accepting, request.key)
            raise
        return Started(turn_id, session.session_id)

    def _begin(self, accepted: Event, key: str | None) -> None:
        turn = LiveTurn(self._journal, self.streams, self._clock, apply(None, accepted), key)
        self.streams.publish_event(accepted)
        self._running.begin(turn)

    async def _accept(
        self, accepted: ev.TurnAccepted, session: SessionRow, turn_id: str, key: str | None
    ) -> Event:
        draft = accepted.draft(session.session_id, turn_id)
        now_ms = self._clock.wall_ms()
        provisional = TurnState(turn_id, session.session_id, accepted, now_ms)
        (event,) = await self._journal.append(
            draft,
            index=(replace(session, updated_ms=now_ms), turn_row(provisional, key, now_ms)),
            durable=True,
            opens_work=True,
        )
        return event

    async def _session_of(self, request: StartTurn) -> SessionRow:
        if request.session_id is None:
            title = " ".join(request.message.text.split())[:80]
            return await self.create_session(request.agent, request.owner_uid, title, request.label)
        return await self.session(request.session_id)

    async def _least_label(self, session_id: str) -> Label:
        """What the session was said to be when it was made."""
        made = await self._journal.read(session_id, kinds=["session.created"], limit=1)
        return highest(Label.PUBLIC, *(Label(event.body.get("label", "public")) for event in made))

    def _agent_config(self, agent: str) -> Config:
        config = self._config()
        if agent not in config.agents:
            known = ", ".join(sorted(config.agents))
            raise NotFound(f"there is no agent {agent!r}", hint=f"agents are: {known}")
        return config

    @staticmethod
    def _check_overrides(config: Config, request: StartTurn) -> None:
        if request.model is not None and request.model not in config.models:
            raise BadRequest(f"there is no model {request.model!r}", hint="appliance models")
        if not request.message.blocks or not (
            request.message.text.strip() or len(request.message.blocks) > 1
        ):
            raise BadRequest("the message is empty", hint="say what the agent should do")

    async def recover(self) -> int:
        """Take up every unfinished turn of earlier daemons. Returns how many. One whose asker has
        ended answers to nobody: the daemon died before it could be cancelled too."""
        rows = await self._index.turns(
            status=[status.value for status in UNFINISHED], limit=UNFINISHED_MAX
        )
        self._running.recover(rows)
        for row in rows:
            if row.parent_turn is not None and not self._running.is_wanted(row.parent_turn):
                await self._cancel(row.turn_id, row.owner_uid, ASKER_ENDED)
        return len(rows)

    # --- looking --------------------------------------------------------------------------------

    async def session(self, session_id: str) -> SessionRow:
        row = await self._index.session(session_id)
        if row is None:
            raise NotFound(f"there is no session {session_id!r}", hint="appliance sessions")
        return row

    async def turn(self, turn_id: str) -> TurnState:
        """The state of a turn, live or ended."""
        live = self._running.get(turn_id)
        if live is not None:
            return live.state
        state = await load_turn(self._journal, turn_id)
        if state is None:
            raise NotFound(f"there is no turn {turn_id!r}", hint="appliance turns")
        return state

    async def follow(self, turn_id: str, after: int = 0) -> AsyncIterator[list[Item]]:
        """Events and deltas of a turn from `after` to its end, in batches; `NotFound` if there is
        none."""
        await self.turn(turn_id)
        async for items in self.streams.follow(turn_id, after):
            yield items

    async def recorded(self, turn_id: str, after: int = 0) -> list[Item]:
        """What the journal holds of a turn by now, as followers would get it."""
        events = await read_turn(self._journal, turn_id)
        return [ev.to_client(event) for event in events if event.seq > after]

    # --- interfering ----------------------------------------------------------------------------

    async def cancel(self, turn_id: str, by_uid: int, reason: str = "cancelled") -> bool:
        """Cancel a turn wherever it is, and those it asked of other agents. False if it had ended
        already. Its end is on disk on return, unless the disk is full."""
        if not await self._cancel(turn_id, by_uid, reason):
            return False
        await self._cancel_children(turn_id, by_uid)
        await self._running.over(turn_id, CANCEL_S)
        await self._cancel_children(turn_id, by_uid)  # that were being accepted meanwhile
        return True

    async def _cancel_children(self, turn_id: str, by_uid: int) -> None:
        for child in self._running.children(turn_id):
            await self.cancel(child, by_uid, "the turn that asked for it was cancelled")

    async def _cancel(self, turn_id: str, by_uid: int, reason: str) -> bool:
        state = await self.turn(turn_id)
        cancelled = ev.TurnCancelled(reason=reason, by_uid=by_uid)
        return not state.is_finished and self._running.cancel(turn_id, cancelled)

    async def ask_person(
        self, turn_id: str, server: str, message: str, fields: Mapping[str, Json]
    ) -> Mapping[str, Json] | None:
        """Put a server's question to a person; see `questions.ask_person`. None as well when the
        turn does not run."""
        turn = self._running.get(turn_id)
        if turn is None:
            return None
        within_s = self._config().tools.approval_s
        return await questions.ask_person(turn, server, message, fields, self._clock, within_s)

    async def answer(
        self,
        approval_id: str,
        decision: str,
        by_uid: int,
        note: str = "",
        content: Mapping[str, Json] | None = None,
    ) -> ApprovalRow:
        """Decide an approval, or answer a server's question with `content`. Answered once: a
        second answer changes nothing and returns the first. Raises `NotFound`, `BadRequest`,
        `Conflict` when its turn has ended."""
        if decision not in DECISIONS:
            raise BadRequest(f"{decision!r} is no decision", hint=f"one of {', '.join(DECISIONS)}")
        async with self._answering:
            row = await self._approvals.get(approval_id)
            if row is None:
                raise NotFound(f"there is no approval {approval_id!r}", hint="appliance approvals")
            if row.status != "pending":
                return row
            turn = await self._running.awake(row.turn)
            if turn is None:
                raise Conflict(f"turn {row.turn} has ended", hint="appliance turns")
            if row.reason == QUESTION:
                return await self._answered_question(turn, row, decision, by_uid, content or {})
            return await self._answered(turn, row, decision, by_uid, note)

    async def _answered_question(
        self,
        turn: LiveTurn,
        row: ApprovalRow,
        decision: str,
        by_uid: int,
        content: Mapping[str, Json],
    ) -> ApprovalRow:
        asked = next((q for q in turn.state.questions if q.approval_id == row.approval_id), None)
        once = "allow_once" if decision.startswith("allow") else "reject_once"
        if asked is None or not await turn.answer(
            ev.QuestionAnswered(
                approval_id=row.approval_id,
                decision=once,
                by_uid=by_uid,
                content=questions.checked(asked, once, content),
            )
        ):
            raise Conflict(f"{row.tool} no longer waits for an answer", hint="appliance approvals")
        return replace(row, status=once, decided_by=by_uid)

    async def _answered(
        self, turn: LiveTurn, row: ApprovalRow, decision: str, by_uid: int, note: str
    ) -> ApprovalRow:
        body = ev.ApprovalAnswered(
            approval_id=row.approval_id,
            call_id=row.call_id,
            decision=decision,
            by_uid=by_uid,
            note=note,
        )
        answered = replace(row, status=decision, decided_by=by_uid)
        standing = self._standing(turn.state, row, decision, by_uid)
        if await turn.decide(body, answered, *standing):
            return answered
        first = await self._approvals.get(row.approval_id)  # it expired, or its turn just ended
        return first or row
