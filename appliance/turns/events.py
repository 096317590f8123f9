"""The typed, versioned events of sessions and turns, as the journal keeps them.

A body is a frozen pydantic model, because the journal is an edge: what is read back was perhaps
written by an older release. Fields may be added with a default within a version; anything else
raises `version` and gets a branch in `decode`.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance.errors import StoreError
from appliance.store.journal import Draft, Event
from appliance.types import Json


class Body(BaseModel):
    """What every event body shares. Unknown fields are ignored so that a downgrade still reads."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)
    kind: ClassVar[str]
    version: ClassVar[int] = 1

    def draft(self, session_id: str, turn_id: str | None) -> Draft:
        return Draft(
            stream=session_id,
            kind=self.kind,
            body=self.model_dump(mode="json", exclude_defaults=True),
            turn=turn_id,
            version=self.version,
        )


class SessionCreated(Body):
    kind = "session.created"
    agent: str
    owner_uid: int
    title: str = ""
    label: str = "public"


class LimitOverrides(BaseModel):
    """A caller's tighter bounds; an agent's own limits are never widened."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    steps_max: int | None = Field(None, ge=1, description="Model calls in this turn.")
    output_tokens_max: int | None = Field(None, ge=1, description="Generated tokens, all steps.")
    turn_s_max: float | None = Field(None, gt=0, description="Seconds from acceptance to end.")
    spend_micro_usd_max: int | None = Field(None, ge=0, description="Micro-dollars in the cloud.")


class Bare(BaseModel):
    """A prompt that is complete in itself: no tools, no memory, not the agent's own system prompt.
    `earlier` are the messages before the turn's own."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)
    asked_by: str
    system: str = ""
    earlier: list[dict[str, Json]] = []


class TurnAccepted(Body):
    kind = "turn.accepted"
    agent: str
    owner_uid: int
    message: dict[str, Json]
    label: str = "public"
    priority: int | None = None
    policy: str | None = None
    model: str | None = None
    limits: LimitOverrides = LimitOverrides()
    config_revision: str = ""
    parent_turn: str | None = None
    depth: int = 0
    workspace: str = ""
    """The session whose workspace its tools use; its own when empty (a child turn shares)."""
    bare: Bare | None = None
    """Set for a turn that is one model call on a prompt of somebody else's."""


class TurnResumed(Body):
    kind = "turn.resumed"
    reason: str


class StepRouted(Body):
    kind = "step.routed"
    step: int
    attempt: int
    target: str
    route: dict[str, Json]


class StepFailed(Body):
    """One attempt at a step came to nothing; what was streamed of it is void."""

    kind = "step.failed"
    step: int
    attempt: int
    target: str
    error: dict[str, Json]


class StepEscalated(Body):
    """The local answer was not good enough; it is kept here and the step moves up."""

    kind = "step.escalated"
    step: int
    attempt: int
    target: str
    reason: str
    message: dict[str, Json]
    usage: dict[str, int]
    judgement: dict[str, Json] = {}


class StepCompleted(Body):
    kind = "step.completed"
    step: int
    attempt: int
    target: str
    message: dict[str, Json]
    stop_reason: str
    usage: dict[str, int]
    mean_logprob: float | None = None
    verdict: str = ""
    judgement: dict[str, Json] = {}
    """`verify.Judgement` as JSON, to reach the verdict again."""


class HistoryCompacted(Body):
    """What the prompt of a step left out; the journal itself keeps everything."""

    kind = "history.compacted"
    step: int
    target: str
    dropped_messages: int
    shortened_results: int
    prompt_tokens_before: int
    prompt_tokens_after: int
    window_tokens: int


class ApprovalAsked(Body):
    kind = "approval.asked"
    approval_id: str
    step: int
    call_id: str
    tool: str
    summary: str
    call_hash: str
    reason: str = ""
    expires_ms: int | None = None


class ApprovalAnswered(Body):
    kind = "approval.answered"
    approval_id: str
    call_id: str
    decision: str
    by_uid: int
    note: str = ""


class QuestionAsked(Body):
    """A server asks a person for something while a call to it runs. It waits for the answer, so
    a question does not outlive it: after a restart it is answered `lost`."""

    kind = "question.asked"
    approval_id: str
    step: int
    server: str
    message: str
    fields: dict[str, Json]
    """JSON schema of the answer: an object of plain values."""
    expires_ms: int | None = None


class QuestionAnswered(Body):
    """`decision` is allow_once, reject_once, expired or lost; `content` fits the question."""

    kind = "question.answered"
    approval_id: str
    decision: str
    by_uid: int
    content: dict[str, Json] = {}


class ToolIntended(Body):
    kind = "tool.intended"
    step: int
    call_id: str
    tool: str
    effect: str
    summary: str
    call_hash: str


class ToolCompleted(Body):
    kind = "tool.completed"
    step: int
    call_id: str
    tool: str
    result: dict[str, Json]
    duration_ms: int = 0
    full_output_path: str | None = None
    waited_ms: int = 0
    spent_micro_usd: int = 0
    """What of the time a person took to answer the turn of another agent."""


class ToolInDoubt(Body):
    """The runner or the machine died inside the call: nobody knows whether it took effect."""

    kind = "tool.in_doubt"
    step: int
    call_id: str
    tool: str
    reason: str


class TurnCompleted(Body):
    """`usage` of an end is what the turn used in all; `LiveTurn.append` says it."""

    kind = "turn.completed"
    text: str
    usage: dict[str, int] = {}
    route: dict[str, Json]
    steps: int
    stop_reason: str


class TurnFailed(Body):
    kind = "turn.failed"
    error: dict[str, Json]
    usage: dict[str, int] = {}
    steps: int = 0


class TurnCancelled(Body):
    kind = "turn.cancelled"
    reason: str
    by_uid: int | None = None
    usage: dict[str, int] = {}


class Charged(Body):
    """What a paid call of the turn came to, however it ended. The ledger appends it with its own
    entry, so that both say the same; it may come after the turn's end."""

    kind = "budget.settled"
    micro_usd: int = 0


TERMINAL_KINDS = frozenset({TurnCompleted.kind, TurnFailed.kind, TurnCancelled.kind})

_KINDS: dict[str, type[Body]] = {
    body.kind: body
    for body in (
        SessionCreated,
        TurnAccepted,
        TurnResumed,
        StepRouted,
        StepFailed,
        StepEscalated,
        StepCompleted,
        HistoryCompacted,
        ApprovalAsked,
        ApprovalAnswered,
        QuestionAsked,
        QuestionAnswered,
        ToolIntended,
        ToolCompleted,
        ToolInDoubt,
        TurnCompleted,
        TurnFailed,
        TurnCancelled,
        Charged,
    )
}

BodyT = TypeVar("BodyT", bound=Body)


def decode(event: Event) -> Body:
    """The typed body of a journal event. Raises `StoreError` for a kind or version not known."""
    body = _KINDS.get(event.kind)
    if body is None or event.version > body.version:
        raise StoreError(
            f"journal event {event.seq} is {event.kind!r} version {event.version}, "
            "which this release does not know",
            hint="run the release that wrote it, or a newer one",
        )
    try:
        return body.model_validate(event.body)
    except ValidationError as error:
        raise StoreError(
            f"journal event {event.seq} ({event.kind}) is malformed: {error.errors()[0]['msg']}",
            hint="appliance doctor verifies the journal",
        ) from error


def to_client(event: Event) -> dict[str, Any]:
    """An event as clients see it: one flat object with `type`, `seq`, `turn` and the body."""
    return {
        "type": event.kind,
        "seq": event.seq,
        "session": event.stream,
        "turn": event.turn,
        "at_ms": event.at_ms,
        **event.body,
    }
