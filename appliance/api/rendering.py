"""Rows and states as the bodies that clients get, and a client's body as a message."""

from __future__ import annotations

import json
from typing import Any

from appliance.api import bodies
from appliance.errors import BadRequest
from appliance.store.approvals import ApprovalRow, GrantRow
from appliance.store.index import SessionRow, TurnRow
from appliance.tools.approvals import always_means
from appliance.turns.state import QUESTION, StepState, TurnState
from appliance.types import Label, Message, text_message
from appliance.types import Role as Speaker
from appliance.wire.native import message_from_json, message_to_json, usage_to_json


def message_of(wanted: bodies.NewTurn, label: Label) -> Message:
    if (wanted.text is None) == (wanted.message is None):
        raise BadRequest("body: give either 'text' or 'message'")
    if wanted.text is not None:
        return text_message(Speaker.USER, wanted.text, label)
    assert wanted.message is not None
    message = message_from_json(wanted.message)
    if message.role is not Speaker.USER:
        raise BadRequest("body key 'message.role': a turn starts with a user's message")
    return message


def session_body(row: SessionRow) -> bodies.Session:
    return bodies.Session(
        id=row.session_id,
        agent=row.agent,
        owner_uid=row.owner_uid,
        title=row.title,
        status=row.status,
        created_ms=row.created_ms,
        updated_ms=row.updated_ms,
    )


def turn_body(row: TurnRow) -> bodies.Turn:
    return bodies.Turn(
        id=row.turn_id,
        session=row.session_id,
        agent=row.agent,
        status=row.status,
        owner_uid=row.owner_uid,
        created_ms=row.created_ms,
        updated_ms=row.updated_ms,
        parent_turn=row.parent_turn,
    )


def last_text(state: TurnState) -> str:
    last = state.steps[-1].message if state.steps else None
    return last.text if last is not None else ""


def step_body(step: StepState) -> bodies.TurnStep:
    return bodies.TurnStep(
        index=step.index,
        target=step.target,
        stop_reason=step.stop_reason,
        usage=usage_to_json(step.usage),
        message=None if step.message is None else message_to_json(step.message),
        calls=[
            {"id": call.call.call_id, "tool": call.call.name, "status": call.status.value}
            for call in step.calls
        ],
        why=list(step.route.get("why", [])),
    )


def approval_body(row: ApprovalRow, fields: dict[str, Any] | None = None) -> bodies.Approval:
    return bodies.Approval(
        id=row.approval_id,
        turn=row.turn,
        session=row.session,
        agent=row.agent,
        tool=row.tool,
        status=row.status,
        summary=row.summary,
        reason=row.reason,
        created_ms=row.created_ms,
        expires_ms=row.expires_ms,
        decided_by=row.decided_by,
        always=always_means(row.tool, row.agent) if row.reason != QUESTION else "",
        fields=fields,
    )


def grant_body(row: GrantRow) -> bodies.Grant:
    said = json.loads(row.pattern)
    return bodies.Grant(
        id=row.grant_id,
        agent=row.agent,
        tool=row.tool,
        allow=said["allow"],
        arguments=said["arguments"],
        granted_by=row.granted_by,
        created_ms=row.created_ms,
        revoked_ms=row.revoked_ms,
    )
