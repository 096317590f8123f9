"""Questions of servers in mid-call (MCP elicitation): put to a person once, answered once.

A question is an approval that wants content. Its server waits with the call, so it ends in one of
four ways: answered, refused, expired, or `lost` with the server, the call or the daemon. What was
lost is not asked again by itself; whether the call is made again is its effect's matter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from appliance.clock import Clock, new_id
from appliance.errors import BadRequest
from appliance.tools import schema
from appliance.turns import events as ev
from appliance.turns.live import LiveTurn
from appliance.types import Json

EXPIRED, LOST = "expired", "lost"
NOBODY = -1


async def ask_person(
    turn: LiveTurn,
    server: str,
    message: str,
    fields: Mapping[str, Json],
    clock: Clock,
    within_s: float,
) -> Mapping[str, Json] | None:
    """The content a person gave, or None if they refused or nobody answered in time. Cancelling
    it means that the server no longer waits."""
    question = ev.QuestionAsked(
        approval_id=new_id("appr"),
        step=turn.state.steps[-1].index,
        server=server,
        message=message,
        fields=dict(fields),
        expires_ms=clock.wall_ms() + int(within_s * 1000),
    )
    answered = False
    try:
        future = await turn.ask(question)
        async with asyncio.timeout(within_s):
            answer = await future
        answered = True
    except TimeoutError:
        await _close(turn, question, EXPIRED)
        return None
    finally:
        if not answered:
            await _close(turn, question, LOST)
    return answer.content if answer.decision.startswith("allow") else None


async def close_lost(turn: LiveTurn) -> None:
    """Answer what an earlier daemon asked for a server that died with it."""
    for question in turn.state.questions:
        await _close(turn, question, LOST)


def checked(
    question: ev.QuestionAsked, decision: str, content: Mapping[str, Json]
) -> dict[str, Json]:
    """The content of an answer. Raises `BadRequest` naming what does not fit the question."""
    if not decision.startswith("allow"):
        return {}
    wrong = schema.problems(question.fields, dict(content))
    if wrong:
        raise BadRequest(
            f"the answer does not fit the question: {'; '.join(wrong)}",
            hint=f"appliance approvals allow {question.approval_id} --set NAME=VALUE",
        )
    return dict(content)


async def _close(turn: LiveTurn, question: ev.QuestionAsked, decision: str) -> None:
    await turn.answer(
        ev.QuestionAnswered(approval_id=question.approval_id, decision=decision, by_uid=NOBODY)
    )
