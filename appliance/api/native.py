"""The native API: sessions, turns, approvals, and what the daemon is doing. No policy here.

Every handler parses, calls one thing in `turns` or asks `Control`, and renders. What a user may
not see does not exist for them: another owner's session is `not_found`, never `refused`.
"""

from __future__ import annotations

import asyncio
from functools import cache, partial
from typing import Any, Protocol

from aiohttp import web

from appliance.api import bodies
from appliance.api.endpoint import Call, Endpoint, openapi
from appliance.api.peer import Role
from appliance.api.rendering import (
    approval_body,
    grant_body,
    last_text,
    message_of,
    session_body,
    step_body,
    turn_body,
)
from appliance.api.sse import stream_events
from appliance.errors import BadRequest, NotFound, Refused
from appliance.store.approvals import PENDING, ApprovalRow, Approvals, Grants
from appliance.store.index import Index, SessionRow, TurnRow
from appliance.turns.explain import explain_turn
from appliance.turns.service import StartTurn, Turns
from appliance.turns.state import QUESTION, TurnState
from appliance.types import Label, Priority
from appliance.wire.native import message_to_json, usage_to_json

SESSION_TURNS_SHOWN = 50
IDEMPOTENCY_KEY_MAX = 200


class Control(Protocol):
    """What the daemon knows and does beyond turns; the daemon satisfies it."""

    async def status(self) -> bodies.Status: ...

    async def is_ready(self) -> bool: ...

    def models(self) -> list[bodies.ModelInfo]: ...

    def agents(self) -> list[bodies.AgentInfo]: ...

    async def set_agent_model(self, agent: str, model: str) -> bodies.ConfigChanges: ...

    def config(self) -> bodies.ConfigState: ...

    async def reload(self) -> bodies.ConfigChanges: ...

    async def diff(self) -> bodies.ConfigChanges: ...

    async def doctor(self) -> bodies.Doctor: ...

    async def decisions(self, subject: str) -> bodies.Explanation: ...

    async def try_route(self, agent: str, text: str) -> bodies.Explanation: ...

    async def budget(self) -> dict[str, Any]: ...

    def mcp(self) -> list[bodies.McpServer]: ...

    def accept_mcp(self, server: str) -> bodies.McpServer: ...


class NativeApi:
    """The endpoints under `/api/`, and `/healthz` and `/readyz`."""

    def __init__(
        self, turns: Turns, index: Index, approvals: Approvals, grants: Grants, control: Control
    ) -> None:
        self._turns = turns
        self._index = index
        self._approvals = approvals
        self._grants = grants
        self._control = control

    def endpoints(self) -> list[Endpoint]:
        user, operator, admin, nobody = Role.USER, Role.OPERATOR, Role.ADMIN, Role.NOBODY
        b = bodies
        found = [
            Endpoint("GET", "/healthz", "Is it alive", nobody, self.healthz, b.Health),
            Endpoint("GET", "/readyz", "Does it serve", nobody, self.readyz, b.Health),
            Endpoint("GET", "/api/status", "What the daemon is doing", user, self.status, b.Status),
            Endpoint("GET", "/api/sessions", "Sessions, newest first", user, self.list_sessions,
                     b.SessionList, query=b.Page),
            Endpoint("POST", "/api/sessions", "Open a session", user, self.create_session,
                     b.Session, body=b.NewSession, status=201),
            Endpoint("GET", "/api/sessions/{session}", "One session", user, self.show_session,
                     b.SessionDetail),
            Endpoint("POST", "/api/sessions/{session}/turns", "Start a turn in a session", user,
                     self.start_turn, b.StartedTurn, body=b.NewTurn, status=202),
            Endpoint("POST", "/api/turns", "Start a turn", user, self.start_turn_anywhere,
                     b.StartedTurn, body=b.NewTurn, status=202),
            Endpoint("GET", "/api/turns", "Turns, newest first", user, self.list_turns,
                     b.TurnList, query=b.TurnPage),
            Endpoint("GET", "/api/turns/{turn}", "One turn", user, self.show_turn, b.TurnDetail),
            Endpoint("GET", "/api/turns/{turn}/events", "Follow a turn", user, self.follow_turn,
                     query=b.AfterSeq, streams=True),
            Endpoint("POST", "/api/turns/{turn}/cancel", "Cancel a turn", user, self.cancel_turn,
                     b.Cancelled),
            Endpoint("GET", "/api/turns/{turn}/explain", "Why a turn ran as it did", user,
                     self.explain, b.Explanation),
            Endpoint("GET", "/api/decisions/{subject}", "Why models were loaded or evicted",
                     user, self.decisions, b.Explanation),
            Endpoint("GET", "/api/approvals", "Questions to people", user, self.list_approvals,
                     b.ApprovalList, query=b.ApprovalPage),
            Endpoint("GET", "/api/approvals/{approval}", "One question", user, self.show_approval,
                     b.Approval),
            Endpoint("POST", "/api/approvals/{approval}", "Answer a question", user,
                     self.answer_approval, b.Approval, body=b.AnswerApproval),
            Endpoint("GET", "/api/grants", "Standing answers, newest first", operator,
                     self.list_grants, b.GrantList),
            Endpoint("POST", "/api/grants/{grant}/revoke", "Take a standing answer back", operator,
                     self.revoke_grant, b.Grant),
            Endpoint("GET", "/api/models", "Models and their state", user, self.models,
                     b.ModelList),
            Endpoint("GET", "/api/agents", "Agents", user, self.agents, b.AgentList),
            Endpoint("PUT", "/api/agents/{agent}/model", "Put an agent on a model", admin,
                     self.set_agent_model, b.ConfigChanges, body=b.SetModel),
            Endpoint("POST", "/api/route/try", "Where a prompt would run", user, self.try_route,
                     b.Explanation, body=b.TryRoute),
            Endpoint("GET", "/api/budget", "Spend and caps", user, self.budget),
            Endpoint("GET", "/api/mcp", "MCP servers and their tools", operator, self.mcp,
                     b.McpServerList),
            Endpoint("POST", "/api/mcp/{server}/accept", "Accept the changed tools of a server",
                     admin, self.accept_mcp, b.McpServer),
            Endpoint("GET", "/api/config", "The configuration in force", operator, self.config,
                     b.ConfigState),
            Endpoint("POST", "/api/config/reload", "Read config.toml again", admin, self.reload,
                     b.ConfigChanges),
            Endpoint("GET", "/api/config/diff", "What a reload would change", operator,
                     self.config_diff, b.ConfigChanges),
            Endpoint("GET", "/api/doctor", "Check what can be checked", operator, self.doctor,
                     b.Doctor),
        ]  # fmt: skip
        found.append(
            Endpoint("GET", "/api/openapi.json", "This description", user, _document(found))
        )
        return found

    # --- health and state -----------------------------------------------------------------------

    async def healthz(self, call: Call) -> bodies.Health:
        return bodies.Health(ok=True)

    async def readyz(self, call: Call) -> bodies.Health | web.Response:
        if await self._control.is_ready():
            return bodies.Health(ok=True)
        return web.json_response({"ok": False}, status=503)

    async def status(self, call: Call) -> bodies.Status:
        return await self._control.status()

    async def models(self, call: Call) -> bodies.ModelList:
        return bodies.ModelList(models=self._control.models())

    async def agents(self, call: Call) -> bodies.AgentList:
        return bodies.AgentList(agents=self._control.agents())

    async def set_agent_model(self, call: Call) -> bodies.ConfigChanges:
        model = call.body(bodies.SetModel).model
        return await self._control.set_agent_model(call.path["agent"], model)

    async def config(self, call: Call) -> bodies.ConfigState:
        return self._control.config()

    async def reload(self, call: Call) -> bodies.ConfigChanges:
        return await self._control.reload()

    async def config_diff(self, call: Call) -> bodies.ConfigChanges:
        return await self._control.diff()

    async def doctor(self, call: Call) -> bodies.Doctor:
        return await self._control.doctor()

    async def budget(self, call: Call) -> web.Response:
        return web.json_response(await self._control.budget())

    async def mcp(self, call: Call) -> bodies.McpServerList:
        return bodies.McpServerList(servers=self._control.mcp())

    async def accept_mcp(self, call: Call) -> bodies.McpServer:
        return self._control.accept_mcp(call.path["server"])

    async def try_route(self, call: Call) -> bodies.Explanation:
        asked = call.body(bodies.TryRoute)
        return await self._control.try_route(asked.agent, asked.text)

    async def decisions(self, call: Call) -> bodies.Explanation:
        return await self._control.decisions(call.path["subject"])

    # --- sessions -------------------------------------------------------------------------------

    async def list_sessions(self, call: Call) -> bodies.SessionList:
        page = call.query(bodies.Page)
        rows = await self._index.sessions(
            owner_uid=call.peer.owner_filter(), limit=page.limit, before=page.before
        )
        return bodies.SessionList(sessions=[session_body(row) for row in rows])

    async def create_session(self, call: Call) -> bodies.Session:
        wanted = call.body(bodies.NewSession)
        label = Label(wanted.label) if wanted.label else None
        row = await self._turns.create_session(wanted.agent, call.peer.uid, wanted.title, label)
        return session_body(row)

    async def show_session(self, call: Call) -> bodies.SessionDetail:
        row = await self._own_session(call)
        turns = await self._index.turns(session=row.session_id, limit=SESSION_TURNS_SHOWN)
        states = [await self._turns.turn(turn.turn_id) for turn in reversed(turns)]
        messages = [message_to_json(message) for state in states for message in state.messages()]
        return bodies.SessionDetail(
            **session_body(row).model_dump(),
            messages=messages,
            turns=[turn_body(turn) for turn in turns],
        )

    async def _own_session(self, call: Call) -> SessionRow:
        session_id = call.path["session"]
        row = await self._turns.session(session_id)
        if not call.peer.sees_all() and row.owner_uid != call.peer.uid:
            raise NotFound(f"there is no session {session_id!r}", hint="appliance sessions")
        return row

    # --- turns ----------------------------------------------------------------------------------

    async def start_turn(self, call: Call) -> bodies.StartedTurn:
        row = await self._own_session(call)
        wanted = call.body(bodies.NewTurn)
        return await self._start(call, wanted, wanted.agent or row.agent, row.session_id)

    async def start_turn_anywhere(self, call: Call) -> bodies.StartedTurn:
        wanted = call.body(bodies.NewTurn)
        if wanted.session is not None:
            row = await self._turns.session(wanted.session)
            if not call.peer.sees_all() and row.owner_uid != call.peer.uid:
                raise NotFound(f"there is no session {wanted.session!r}")
            return await self._start(call, wanted, wanted.agent or row.agent, row.session_id)
        if wanted.agent is None:
            raise BadRequest(
                "body key 'agent': name an agent, or a session", hint="appliance agents"
            )
        return await self._start(call, wanted, wanted.agent, None)

    async def _start(
        self, call: Call, wanted: bodies.NewTurn, agent: str, session_id: str | None
    ) -> bodies.StartedTurn:
        key = call.request.headers.get("Idempotency-Key")
        if key is not None and not 0 < len(key) <= IDEMPOTENCY_KEY_MAX:
            raise BadRequest(f"an Idempotency-Key has 1 to {IDEMPOTENCY_KEY_MAX} characters")
        label = Label(wanted.label) if wanted.label else None
        started = await self._turns.start(
            StartTurn(
                agent=agent,
                message=message_of(wanted, label or Label.PUBLIC),
                owner_uid=call.peer.uid,
                session_id=session_id,
                key=key,
                label=label,
                priority=None if wanted.priority is None else Priority[wanted.priority.upper()],
                policy=wanted.policy,
                model=wanted.model,
                limits=wanted.limits,
            )
        )
        return bodies.StartedTurn(
            turn=started.turn_id, session=started.session_id, repeated=started.is_repeat
        )

    async def list_turns(self, call: Call) -> bodies.TurnList:
        page = call.query(bodies.TurnPage)
        rows = await self._index.turns(
            session=page.session,
            status=page.status.split(",") if page.status else None,
            owner_uid=call.peer.owner_filter(),
            limit=page.limit,
            before=page.before,
        )
        return bodies.TurnList(turns=[turn_body(row) for row in rows])

    async def show_turn(self, call: Call) -> bodies.TurnDetail:
        row, state = await self._own_turn(call)
        return bodies.TurnDetail(
            **{**turn_body(row).model_dump(), "status": state.status.value},
            text=state.text or last_text(state),
            label=state.label.value,
            usage=usage_to_json(state.usage),
            error=dict(state.error),
            steps=[step_body(step) for step in state.steps],
        )

    async def follow_turn(self, call: Call) -> web.StreamResponse:
        row, _ = await self._own_turn(call)
        after = call.query(bodies.AfterSeq).after
        resumed = call.request.headers.get("Last-Event-ID", "")
        if resumed.isascii() and resumed.isdigit():
            after = max(after, int(resumed))
        if call.request.headers.get("Accept") == "application/json":
            return web.json_response(await self._turns.recorded(row.turn_id, after))
        return await stream_events(call.request, self._turns.follow(row.turn_id, after))

    async def cancel_turn(self, call: Call) -> bodies.Cancelled:
        row, _ = await self._own_turn(call)
        done = await self._turns.cancel(row.turn_id, call.peer.uid)
        return bodies.Cancelled(turn=row.turn_id, cancelled=done)

    async def explain(self, call: Call) -> bodies.Explanation:
        row, state = await self._own_turn(call)
        events = await self._turns.recorded(row.turn_id)
        return bodies.Explanation(
            subject=row.turn_id, lines=explain_turn(state, events), records=events
        )

    async def _own_turn(self, call: Call) -> tuple[TurnRow, TurnState]:
        turn_id = call.path["turn"]
        row = await self._index.turn(turn_id)
        if row is None or (not call.peer.sees_all() and row.owner_uid != call.peer.uid):
            raise NotFound(f"there is no turn {turn_id!r}", hint="appliance turns lists them")
        return row, await self._turns.turn(turn_id)

    # --- approvals ------------------------------------------------------------------------------

    async def list_approvals(self, call: Call) -> bodies.ApprovalList:
        page = call.query(bodies.ApprovalPage)
        rows = await self._approvals.page(status=page.status or None, limit=page.limit)
        own = [row for row in rows if await self._may_answer(call, row)]
        return bodies.ApprovalList(approvals=[approval_body(row) for row in own])

    async def show_approval(self, call: Call) -> bodies.Approval:
        row = await self._own_approval(call)
        return approval_body(row, await self._fields(row))

    async def answer_approval(self, call: Call) -> bodies.Approval:
        row = await self._own_approval(call)
        answer = call.body(bodies.AnswerApproval)
        if answer.decision.endswith("_always") and call.peer.role < Role.OPERATOR:
            raise Refused("a standing decision needs the role operator", hint="use allow_once")
        done = await self._turns.answer(
            row.approval_id, answer.decision, call.peer.uid, answer.note, answer.content
        )
        return approval_body(done)

    async def list_grants(self, call: Call) -> bodies.GrantList:
        return bodies.GrantList(grants=[grant_body(row) for row in await self._grants.all()])

    async def revoke_grant(self, call: Call) -> bodies.Grant:
        grant_id = call.path["grant"]
        row = await self._grants.revoke(grant_id, call.peer.uid)
        if row is None:
            raise NotFound(
                f"there is no standing answer {grant_id!r}", hint="appliance approvals standing"
            )
        return grant_body(row)

    async def _fields(self, row: ApprovalRow) -> dict[str, Any] | None:
        """What a server that still waits for an answer asks for."""
        if row.reason != QUESTION or row.status != PENDING:
            return None
        turn = await self._turns.turn(row.turn)
        asked = (each for each in turn.questions if each.approval_id == row.approval_id)
        return next((each.fields for each in asked), None)

    async def _own_approval(self, call: Call) -> ApprovalRow:
        approval_id = call.path["approval"]
        row = await self._approvals.get(approval_id)
        if row is None or not await self._may_answer(call, row):
            raise NotFound(f"there is no approval {approval_id!r}", hint="appliance approvals list")
        return row

    async def _may_answer(self, call: Call, row: ApprovalRow) -> bool:
        if call.peer.sees_all():
            return True
        turn = await self._index.turn(row.turn)
        return turn is not None and turn.owner_uid == call.peer.uid


def _document(endpoints: list[Endpoint]) -> Any:
    """Made when it is first asked for, in a thread: it costs a tenth of a start."""
    document = cache(partial(openapi, endpoints))

    async def openapi_document(call: Call) -> web.Response:
        return web.json_response(await asyncio.to_thread(document))

    return openapi_document
