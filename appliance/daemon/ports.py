"""What the tools room asks of rooms it may not import: other agents, notes, standing answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from appliance.clock import Clock, new_id
from appliance.config.agents import AgentConfig
from appliance.config.schema import Config
from appliance.errors import ApplianceError, EngineError, NotFound
from appliance.memory.notes import JournalNotes
from appliance.store.approvals import ApprovalRow, GrantRow, Grants
from appliance.store.journal import IndexRow
from appliance.store.places import PlaceLabels
from appliance.tools.ports import Answer, Note, workspace_place
from appliance.tools.registry import Toolbox
from appliance.tools.types import FilePolicy, Grant, Intent, ToolContext
from appliance.turns.events import Bare, LimitOverrides
from appliance.turns.limits import check, tightened
from appliance.turns.service import StartTurn, Turns
from appliance.turns.state import TurnState, TurnStatus
from appliance.types import Json, Role, text_message
from appliance.wire.native import message_to_json

DEPTH_MAX = 4
"""Agents asking agents: deeper is a circle, not a division of work."""


class TurnDelegate:
    """`tools.ports.Delegate`: a question to another agent is a child turn, once per key, on the
    other's own limits, in what is left of the time and the money of whoever asks."""

    def __init__(
        self, turns: Callable[[], Turns], config: Callable[[], Config], clock: Clock
    ) -> None:
        self._turns = turns
        self._config = config
        self._clock = clock

    async def ask(self, agent: str, prompt: str, key: str, ctx: ToolContext) -> Answer:
        turns = self._turns()
        parent = await turns.turn(ctx.turn_id)
        if parent.accepted.depth >= DEPTH_MAX:
            return Answer(f"agents are asked {DEPTH_MAX} deep at most", ctx.label, is_error=True)
        try:
            started = await turns.start(
                StartTurn(
                    agent=agent,
                    message=text_message(Role.USER, prompt, ctx.label),
                    owner_uid=ctx.uid,
                    key=f"ask_agent/{key}",
                    label=ctx.label,
                    policy=parent.accepted.policy,
                    limits=self._limits(parent),
                    parent_turn=ctx.turn_id,
                    depth=parent.accepted.depth + 1,
                    workspace=parent.accepted.workspace or parent.session_id,
                )
            )
            async for _ in turns.follow(started.turn_id):
                pass
        except ApplianceError as error:
            return Answer(error.message, ctx.label, is_error=True)
        child = await turns.turn(started.turn_id)
        is_done = child.status is TurnStatus.DONE
        return Answer(
            child.text if is_done else str(child.error.get("message", "")),
            child.label,
            is_error=not is_done,
            waited_ms=child.waited_ms,
            spent_micro_usd=child.spent_micro_usd,
        )

    def _limits(self, parent: TurnState) -> LimitOverrides:
        own = tightened(self._config().limits_of(parent.accepted.agent), parent.accepted.limits)
        left_s = own.turn_s_max - parent.elapsed_s(self._clock.wall_ms())
        left_micro_usd = own.spend_micro_usd_max - parent.spent_micro_usd
        # Nothing left is no reason to refuse: the key may join a turn that has its answer already,
        # and one without money has the local models.
        return LimitOverrides(
            turn_s_max=max(left_s, 1.0), spend_micro_usd_max=max(left_micro_usd, 0)
        )


class TurnElicitor:
    """`tools.ports.Elicitor`: a server's question stands among the approvals of its turn."""

    def __init__(self, turns: Callable[[], Turns]) -> None:
        self._turns = turns

    async def elicit(
        self, server: str, message: str, schema: Mapping[str, Json], ctx: ToolContext
    ) -> Mapping[str, Json] | None:
        return await self._turns().ask_person(ctx.turn_id, server, message, schema)


class TurnSampler:
    """`tools.ports.Sampler`: a server's prompt is a bare child turn of the agent that called the
    server, on its label, its policy, and what is left of its money and time."""

    def __init__(self, turns: Callable[[], Turns], config: Callable[[], Config], clock: Clock):
        self._turns = turns
        self._config = config
        self._clock = clock

    async def sample(
        self,
        server: str,
        system: str,
        messages: tuple[tuple[str, str], ...],
        max_tokens: int,
        ctx: ToolContext,
    ) -> str:
        turns = self._turns()
        parent = await turns.turn(ctx.turn_id)
        said = [text_message(Role(role), text, ctx.label) for role, text in messages]
        started = await turns.start(
            StartTurn(
                agent=ctx.agent,
                message=said[-1],
                owner_uid=ctx.uid,
                label=ctx.label,
                policy=parent.accepted.policy,
                limits=self._limits(parent, max_tokens),
                parent_turn=ctx.turn_id,
                depth=parent.accepted.depth + 1,
                bare=Bare(
                    asked_by=server,
                    system=system,
                    earlier=[message_to_json(message) for message in said[:-1]],
                ),
            )
        )
        try:
            async for _ in turns.follow(started.turn_id):
                pass
        except asyncio.CancelledError:
            await turns.cancel(started.turn_id, ctx.uid, f"{server} no longer waits for it")
            raise
        child = await turns.turn(started.turn_id)
        if child.status is not TurnStatus.DONE:
            raise EngineError(str(child.error.get("message", "the model gave no answer")))
        return child.text

    def _limits(self, parent: TurnState, max_tokens: int) -> LimitOverrides:
        """Raises `LimitReached` where nothing is left."""
        accepted = parent.accepted
        own = tightened(self._config().limits_of(accepted.agent), accepted.limits)
        left = check(parent, own, parent.elapsed_s(self._clock.wall_ms()))
        return LimitOverrides(
            steps_max=1,
            output_tokens_max=max(1, min(max_tokens, left.output_tokens)),
            turn_s_max=left.turn_s,
            spend_micro_usd_max=left.spend_micro_usd,
        )


class AgentNotes:
    """`tools.ports.Notes` on the journal's notes."""

    def __init__(self, notes: JournalNotes) -> None:
        self._notes = notes

    async def remember(self, text: str, key: str, ctx: ToolContext) -> str:
        return await self._notes.remember(ctx.agent, ctx.uid, text, ctx.label, key)

    async def recall(self, query: str, limit: int, ctx: ToolContext) -> tuple[Note, ...]:
        found = await self._notes.recall(ctx.agent, ctx.uid, query, limit)
        return tuple(Note(note_id, text, label) for note_id, text, label in found)


class Surroundings:
    """Builds the context of a turn's calls, and the standing answers people gave."""

    def __init__(
        self,
        config: Callable[[], Config],
        grants: Grants,
        places: PlaceLabels,
        workspaces: Callable[[], Path],
        clock: Clock,
    ) -> None:
        self._config = config
        self._grants = grants
        self._places = places
        self._workspaces = workspaces
        self._clock = clock

    async def context(self, state: TurnState, step: int) -> ToolContext:
        """The label is that of the workspace, raised to the turn's: what any agent wrote there
        before may be read now, and what this one writes now may be read by any later."""
        label = await self._places.raise_to(workspace_place(_owner(state)), state.label)
        rows = await self._grants.standing(state.accepted.agent)
        return ToolContext(
            session_id=state.session_id,
            turn_id=state.turn_id,
            step_id=f"{state.turn_id}.{step}",
            agent=state.accepted.agent,
            workspace=self._workspace(state),
            label=label,
            uid=state.accepted.owner_uid,
            policy=self._policy(state.accepted.agent),
            hosts=self._agent(state.accepted.agent).shell_hosts,
            grants=tuple(_grant(row) for row in rows),
        )

    def _agent(self, name: str) -> AgentConfig:
        """Raises `NotFound` once it is configured no more: nothing of it runs without a policy."""
        entry = self._config().agents.get(name)
        if entry is None:
            raise NotFound(f"agent {name!r} is no longer configured", hint="appliance agents")
        return entry

    def _policy(self, agent: str) -> FilePolicy:
        """What of the workspace is closed to this agent."""
        entry = self._agent(agent)
        return FilePolicy(entry.read_only, entry.hidden)

    def _workspace(self, state: TurnState) -> Path:
        return self._workspaces() / _owner(state)

    def standing(
        self, toolbox: Toolbox, state: TurnState, row: ApprovalRow, decision: str, by_uid: int
    ) -> Sequence[IndexRow]:
        """The row that keeps an `…_always`, bound as the tools room binds it; else nothing."""
        if not decision.endswith("_always"):
            return ()
        call = next(c.call for c in state.steps[-1].calls if c.call.call_id == row.call_id)
        ctx = ToolContext(
            session_id=state.session_id,
            turn_id=state.turn_id,
            step_id="",
            agent=row.agent,
            workspace=self._workspace(state),
            policy=self._policy(row.agent),
            hosts=self._agent(row.agent).shell_hosts,
        )
        intent = toolbox.prepare(call, ctx)
        if not isinstance(intent, Intent):
            return ()
        grant = toolbox.grant_from(intent, ctx, decision == "allow_always")
        pattern = json.dumps({"allow": grant.allow, "arguments": dict(grant.arguments)})
        now_ms = self._clock.wall_ms()
        return (GrantRow(new_id("grant"), grant.agent, grant.tool, pattern, by_uid, now_ms),)


def _owner(state: TurnState) -> str:
    """The session whose workspace a turn's tools use."""
    return state.accepted.workspace or state.session_id


def _grant(row: GrantRow) -> Grant:
    said = json.loads(row.pattern)
    return Grant(row.agent, row.tool, bool(said["allow"]), said["arguments"])
