"""What a turn is: a fold over its events, and the one next move that state asks for.

The loop has no variables of its own. It folds, asks `next_move`, does that one thing, appends the
event that says so, and folds that in. A crash at any point therefore resumes exactly where the
journal ends, by the same code: there is no second, rarely run recovery path.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias

from appliance.store.journal import Event
from appliance.turns import events as ev
from appliance.types import (
    Block,
    Json,
    Label,
    Message,
    Role,
    TextBlock,
    ToolCallBlock,
    ToolResultBlock,
    Usage,
    highest,
)
from appliance.wire.native import block_from_json, message_from_json, usage_from_json


class TurnStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    WAITING_APPROVAL = "waiting_approval"
    IN_DOUBT = "in_doubt"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


UNFINISHED = (
    TurnStatus.QUEUED,
    TurnStatus.RUNNING,
    TurnStatus.WAITING_APPROVAL,
    TurnStatus.IN_DOUBT,
)

AWAITING_PERSON = (TurnStatus.WAITING_APPROVAL, TurnStatus.IN_DOUBT)

IN_DOUBT = "in_doubt"
"""`ApprovalAsked.reason` when the question is whether to repeat a call of unknown outcome."""


QUESTION = "question"
"""`ApprovalRow.reason` of a server's question: what is wanted is an answer, not a permission."""


class CallStatus(StrEnum):
    WANTED = "wanted"
    ASKED = "asked"
    ALLOWED = "allowed"
    DENIED = "denied"
    INTENDED = "intended"
    IN_DOUBT = "in_doubt"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True)
class CallState:
    """One tool call of a step, from the model's wish to its result."""

    call: ToolCallBlock
    status: CallStatus = CallStatus.WANTED
    approval: ev.ApprovalAsked | None = None
    answer: ev.ApprovalAnswered | None = None
    intent: ev.ToolIntended | None = None
    doubt: str = ""
    result: ToolResultBlock | None = None


@dataclass(frozen=True, slots=True)
class StepState:
    index: int
    attempt: int = 0
    target: str = ""
    route: Mapping[str, Json] = field(default_factory=dict)
    message: Message | None = None
    stop_reason: str = ""
    usage: Usage = Usage()
    calls: tuple[CallState, ...] = ()
    escalated: bool = False
    """Its local answer was not good enough; the turn stays up until its end."""

    @property
    def is_open(self) -> bool:
        """The model has not answered yet."""
        return self.message is None

    @property
    def unfinished_calls(self) -> tuple[CallState, ...]:
        return tuple(call for call in self.calls if call.status is not CallStatus.COMPLETED)


@dataclass(frozen=True, slots=True)
class TurnState:
    turn_id: str
    session_id: str
    accepted: ev.TurnAccepted
    accepted_ms: int
    status: TurnStatus = TurnStatus.QUEUED
    steps: tuple[StepState, ...] = ()
    answers: Usage = Usage()
    """What its answers used."""
    charged_micro_usd: int = 0
    """What the ledger has of its calls, those without an answer too."""
    text: str = ""
    error: Mapping[str, Json] = field(default_factory=dict)
    last_seq: int = 0
    ended_ms: int | None = None
    questions: tuple[ev.QuestionAsked, ...] = ()
    """Of servers in mid-call, not answered yet."""
    last_ms: int = 0
    waited_ms: int = 0
    """What of its time people took to answer, its own questions and those of turns it asked for."""
    asked_micro_usd: int = 0
    """What the turns cost that it asked of other agents."""

    @property
    def is_finished(self) -> bool:
        return self.status not in UNFINISHED

    def elapsed_s(self, now_ms: int) -> float:
        """Seconds since acceptance in which it did not wait for a person."""
        return (now_ms - self.accepted_ms - self.waited_ms) / 1000

    @property
    def usage(self) -> Usage:
        """What it used so far. Of money the ledger's word counts; it says less than the answers
        only while one is not settled, and in journals older than that word."""
        spend = max(self.charged_micro_usd, self.answers.spend_micro_usd)
        return replace(self.answers, spend_micro_usd=spend)

    @property
    def spent_micro_usd(self) -> int:
        """What it cost so far, with the turns that it asked for."""
        return self.usage.spend_micro_usd + self.asked_micro_usd

    @property
    def label(self) -> Label:
        """The highest label of anything this turn has touched."""
        touched = [Label(self.accepted.label)]
        touched += [message.label for message in self.messages()]
        return highest(*touched)

    def messages(self) -> tuple[Message, ...]:
        """The turn as conversation: question, answers, results; call/result pairs always whole.

        A call that never came to a result (the turn was cancelled or failed) gets one that says
        so, because a history with an unanswered call is refused by every provider.
        """
        said = [message_from_json(self.accepted.message)]
        for step in self.steps:
            if step.message is None:
                continue
            said.append(step.message)
            if step.calls:
                said.append(Message(Role.USER, tuple(_result(call) for call in step.calls)))
        return tuple(said)


def _result(call: CallState) -> Block:
    if call.result is not None:
        return call.result
    note = TextBlock("This call was not carried out: the turn ended before it.")
    return ToolResultBlock(call.call.call_id, (note,), is_error=True, label=call.call.label)


# --- the next move ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CallModel:
    """Make model call number `step` (from 0); `attempt` counts the tries at it."""

    step: int
    attempt: int


@dataclass(frozen=True, slots=True)
class CarryOut:
    """Bring these calls to a result. The loop asks, intends, runs or adopts by their status."""

    step: int
    calls: tuple[CallState, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    text: str
    stop_reason: str


Move: TypeAlias = CallModel | CarryOut | Finish


def next_move(state: TurnState) -> Move:
    """The one thing an unfinished turn needs next."""
    assert not state.is_finished, "a finished turn has no next move"
    if not state.steps:
        return CallModel(0, 0)
    step = state.steps[-1]
    if step.message is None:
        return CallModel(step.index, step.attempt + 1)
    if step.unfinished_calls:
        return CarryOut(step.index, step.unfinished_calls)
    if step.calls:
        return CallModel(step.index + 1, 0)
    return Finish(step.message.text, step.stop_reason)


# --- the fold -----------------------------------------------------------------------------------


def fold(journal: Iterable[Event]) -> TurnState:
    """The state after these events of one turn, which begin with `turn.accepted`."""
    state: TurnState | None = None
    for event in journal:
        state = apply(state, event)
    assert state is not None, "a turn has at least its turn.accepted"
    return state


def apply(state: TurnState | None, event: Event) -> TurnState:
    """One event folded in. Pure; raises `StoreError` for an event this release does not know."""
    body = ev.decode(event)
    if isinstance(body, ev.TurnAccepted):
        assert event.turn is not None
        return TurnState(event.turn, event.stream, body, event.at_ms, last_seq=event.seq)
    assert state is not None, f"{event.kind} before turn.accepted"
    if isinstance(body, ev.Charged):
        charged = state.charged_micro_usd + body.micro_usd
        last_seq = max(state.last_seq, event.seq)
        return replace(state, charged_micro_usd=charged, last_seq=last_seq)
    waited_ms = state.waited_ms
    if state.status in AWAITING_PERSON:
        waited_ms += max(event.at_ms - state.last_ms, 0)
    asked_micro_usd = state.asked_micro_usd
    if isinstance(body, ev.ToolCompleted):
        waited_ms += body.waited_ms
        asked_micro_usd += body.spent_micro_usd
    return replace(
        _applied(state, body, event.at_ms),
        last_seq=event.seq,
        last_ms=event.at_ms,
        waited_ms=waited_ms,
        asked_micro_usd=asked_micro_usd,
    )


def _applied(state: TurnState, body: ev.Body, at_ms: int) -> TurnState:
    match body:
        case ev.StepRouted():
            return replace(_with_step(state, _routed(state, body)), status=TurnStatus.RUNNING)
        case ev.StepEscalated():
            raised = replace(state.steps[-1], escalated=True)
            answers = state.answers + usage_from_json(body.usage)
            return replace(_with_step(state, raised), answers=answers)
        case ev.StepCompleted():
            step = _completed(state.steps[-1], body)
            return replace(_with_step(state, step), answers=state.answers + step.usage)
        case ev.ApprovalAsked():
            asked = CallStatus.IN_DOUBT if body.reason == IN_DOUBT else CallStatus.ASKED
            return _set_call(
                state, body.call_id, TurnStatus.WAITING_APPROVAL,
                status=asked, approval=body, answer=None,
            )  # fmt: skip
        case ev.ApprovalAnswered():
            return _answered(state, body)
        case ev.QuestionAsked():
            return _with_questions(state, (*state.questions, body))
        case ev.QuestionAnswered(approval_id=answered) if not state.is_finished:
            left = tuple(q for q in state.questions if q.approval_id != answered)
            return _with_questions(state, left)
        case ev.ToolIntended():
            return _set_call(
                state, body.call_id, TurnStatus.RUNNING,
                status=CallStatus.INTENDED, intent=body,
            )  # fmt: skip
        case ev.ToolCompleted():
            result = block_from_json(body.result)
            assert isinstance(result, ToolResultBlock)
            return _set_call(
                state, body.call_id, TurnStatus.RUNNING,
                status=CallStatus.COMPLETED, result=result,
            )  # fmt: skip
        case ev.ToolInDoubt():
            return _set_call(
                state, body.call_id, TurnStatus.IN_DOUBT,
                status=CallStatus.IN_DOUBT, doubt=body.reason, approval=None, answer=None,
            )  # fmt: skip
        case ev.TurnCompleted():
            return replace(state, status=TurnStatus.DONE, text=body.text, ended_ms=at_ms)
        case ev.TurnFailed():
            return replace(state, status=TurnStatus.FAILED, error=body.error, ended_ms=at_ms)
        case ev.TurnCancelled():
            error: dict[str, Json] = {"code": "cancelled", "message": body.reason}
            return replace(state, status=TurnStatus.CANCELLED, error=error, ended_ms=at_ms)
        case _:  # resumed, failed attempts, compaction: history for people, no state
            return state


def _routed(state: TurnState, body: ev.StepRouted) -> StepState:
    known = state.steps[-1] if state.steps and state.steps[-1].index == body.step else None
    step = known or StepState(body.step)
    return replace(step, attempt=body.attempt, target=body.target, route=body.route)


def _completed(step: StepState, body: ev.StepCompleted) -> StepState:
    assert step.index == body.step, "a step completes before the next begins"
    message = message_from_json(body.message)
    return replace(
        step,
        attempt=body.attempt,
        target=body.target,
        message=message,
        stop_reason=body.stop_reason,
        usage=usage_from_json(body.usage),
        calls=tuple(CallState(call) for call in message.tool_calls),
    )


def _with_step(state: TurnState, step: StepState) -> TurnState:
    earlier = state.steps[:-1] if state.steps and state.steps[-1].index == step.index else None
    return replace(state, steps=(*(state.steps if earlier is None else earlier), step))


def _answered(state: TurnState, body: ev.ApprovalAnswered) -> TurnState:
    """Once answered, always answered: a second answer changes nothing."""
    call = next((c for c in state.steps[-1].calls if c.call.call_id == body.call_id), None)
    asked = call.approval if call is not None else None
    if (
        call is None
        or asked is None
        or asked.approval_id != body.approval_id
        or call.answer is not None
    ):
        return state
    status = CallStatus.ALLOWED if body.decision.startswith("allow") else CallStatus.DENIED
    return _set_call(state, body.call_id, TurnStatus.RUNNING, status=status, answer=body)


def _with_questions(state: TurnState, questions: tuple[ev.QuestionAsked, ...]) -> TurnState:
    status = _status(state.steps[-1].calls, TurnStatus.RUNNING, questions)
    return replace(state, questions=questions, status=status)


def _set_call(
    state: TurnState, call_id: str, turn_status: TurnStatus, **changes: object
) -> TurnState:
    step = state.steps[-1]
    calls = tuple(
        replace(call, **changes) if call.call.call_id == call_id else call  # type: ignore[arg-type]
        for call in step.calls
    )
    status = _status(calls, turn_status, state.questions)
    return replace(_with_step(state, replace(step, calls=calls)), status=status)


def _status(
    calls: tuple[CallState, ...], otherwise: TurnStatus, questions: tuple[ev.QuestionAsked, ...]
) -> TurnStatus:
    """A turn waits for a person while any of its calls does."""
    if any(call.status is CallStatus.IN_DOUBT for call in calls):
        return TurnStatus.IN_DOUBT
    if questions or any(call.status is CallStatus.ASKED for call in calls):
        return TurnStatus.WAITING_APPROVAL
    return TurnStatus.RUNNING if otherwise in (TurnStatus.WAITING_APPROVAL, TurnStatus.IN_DOUBT) \
        else otherwise  # fmt: skip
