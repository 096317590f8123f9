"""The fold of a turn over random but legal histories: resumable anywhere, calls always whole."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.store.journal import Event
from appliance.turns import events as ev
from appliance.turns.state import (
    CallModel,
    CallStatus,
    CarryOut,
    Finish,
    TurnState,
    apply,
    fold,
    next_move,
)
from appliance.types import (
    Message,
    Role,
    TextBlock,
    ToolCallBlock,
    ToolResultBlock,
    text_message,
)
from appliance.wire.native import block_to_json, message_to_json

STEPS_MAX = 4


class History:
    """Writes the events a turn would, one legal choice after another."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self.events: list[Event] = []
        question = message_to_json(text_message(Role.USER, "go"))
        self.add(ev.TurnAccepted(agent="a", owner_uid=0, message=question))

    @property
    def state(self) -> TurnState:
        return fold(self.events)

    def add(self, body: ev.Body) -> None:
        draft = body.draft("ses_a", "turn_a")
        seq = len(self.events) + 1
        self.events.append(
            Event(seq, draft.stream, draft.kind, dict(draft.body), draft.turn, draft.version, seq)
        )

    def choose(self, *options: str) -> str:
        return self._data.draw(st.sampled_from(options))

    def write(self) -> None:
        """Make move after move until the turn ends, by itself or by its limits."""
        while not (state := self.state).is_finished:
            if self.choose("go", "go", "go", "go", "go", "resume", "end") == "end":
                self.add(self.choose_end())
                return
            match next_move(state):
                case CallModel(step=step, attempt=attempt):
                    self.call_model(step, attempt)
                case CarryOut(step=step, calls=calls):
                    self.move_call(step, self._data.draw(st.sampled_from(calls)).call.call_id)
                case Finish(text=text, stop_reason=stop):
                    self.add(
                        ev.TurnCompleted(text=text, usage={}, route={}, steps=1, stop_reason=stop)
                    )

    def choose_end(self) -> ev.Body:
        if self.choose("failed", "cancelled") == "failed":
            return ev.TurnFailed(error={"code": "limit_reached", "message": "x"})
        return ev.TurnCancelled(reason="x")

    def call_model(self, step: int, attempt: int) -> None:
        self.add(ev.StepRouted(step=step, attempt=attempt, target="m", route={}))
        if self.choose("works", "works", "fails") == "fails":
            error = {"code": "engine_failed", "message": "x"}
            self.add(ev.StepFailed(step=step, attempt=attempt, target="m", error=error))
            return
        count = 0 if step >= STEPS_MAX else self._data.draw(st.integers(0, 3))
        calls = tuple(ToolCallBlock(f"call_{step}_{n}", "shell", {}) for n in range(count))
        message = Message(Role.ASSISTANT, (TextBlock("said"), *calls))
        self.add(
            ev.StepCompleted(
                step=step,
                attempt=attempt,
                target="m",
                message=message_to_json(message),
                stop_reason="tool_use" if calls else "end_turn",
                usage={"output_tokens": 1},
            )
        )

    def move_call(self, step: int, call_id: str) -> None:
        call = next(c for c in self.state.steps[-1].calls if c.call.call_id == call_id)
        match call.status:
            case CallStatus.WANTED:
                kind = self.choose("ask", "intend", "refuse")
            case CallStatus.ALLOWED:
                kind = "intend"
            case CallStatus.DENIED:
                kind = "refuse"
            case CallStatus.INTENDED:
                kind = self.choose("complete", "complete", "doubt")
            case CallStatus.IN_DOUBT if call.approval is None:
                kind = "ask again"
            case _:
                kind = "answer"
        if kind in ("ask", "ask again"):
            self.add(
                ev.ApprovalAsked(
                    approval_id=f"apr_{len(self.events)}", step=step, call_id=call_id,
                    tool="shell", summary="s", call_hash="h",
                    reason="in_doubt" if kind == "ask again" else "",
                )
            )  # fmt: skip
        elif kind == "answer":
            assert call.approval is not None
            for _ in range(self._data.draw(st.integers(1, 2))):  # the second changes nothing
                self.add(
                    ev.ApprovalAnswered(
                        approval_id=call.approval.approval_id, call_id=call_id, by_uid=0,
                        decision=self.choose("allow_once", "reject_once"),
                    )
                )  # fmt: skip
        elif kind == "intend":
            self.add(
                ev.ToolIntended(
                    step=step, call_id=call_id, tool="shell", effect="once", summary="s",
                    call_hash="h",
                )
            )  # fmt: skip
        elif kind == "doubt":
            self.add(ev.ToolInDoubt(step=step, call_id=call_id, tool="shell", reason="died"))
        else:
            result = block_to_json(ToolResultBlock(call_id, (TextBlock("r"),)))
            self.add(ev.ToolCompleted(step=step, call_id=call_id, tool="shell", result=result))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_prefix_and_then_the_rest_folds_as_the_whole(data: st.DataObject) -> None:
    history = History(data)
    history.write()
    whole = fold(history.events)
    cut = data.draw(st.integers(1, len(history.events)))
    state = fold(history.events[:cut])
    for event in history.events[cut:]:
        state = apply(state, event)
    assert state == whole


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_calls_and_results_come_in_whole_pairs_at_every_point(data: st.DataObject) -> None:
    history = History(data)
    history.write()
    for cut in range(1, len(history.events) + 1):
        state = fold(history.events[:cut])
        messages = state.messages()
        for said, after in zip(messages, (*messages[1:], None), strict=True):
            wanted = [call.call_id for call in said.tool_calls]
            if wanted:
                assert after is not None and after.role is Role.USER
                results = [block for block in after.blocks if isinstance(block, ToolResultBlock)]
                assert [result.call_id for result in results] == wanted
        if state.is_finished:
            with pytest.raises(AssertionError, match="no next move"):
                next_move(state)
    done = [event.body["call_id"] for event in history.events if event.kind == "tool.completed"]
    assert len(done) == len(set(done)), "a call gets one result"


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_second_answer_changes_nothing_but_the_position(data: st.DataObject) -> None:
    history = History(data)
    history.write()
    answers = [e for e in history.events if e.kind == "approval.answered"]
    for answer in answers:
        until = fold(history.events[: answer.seq])
        other = "reject_once" if answer.body["decision"] == "allow_once" else "allow_once"
        again = Event(
            answer.seq + 1, answer.stream, answer.kind, {**answer.body, "decision": other},
            answer.turn, answer.version, answer.at_ms,
        )  # fmt: skip
        after = apply(until, again)
        assert (after.steps, after.status) == (until.steps, until.status)


def test_the_time_a_person_takes_does_not_count() -> None:
    question = message_to_json(text_message(Role.USER, "go"))
    wanted = Message(Role.ASSISTANT, (ToolCallBlock("c1", "shell", {}),))
    result = ToolResultBlock("c1", (TextBlock("done"),))
    bodies: list[tuple[int, ev.Body]] = [
        (0, ev.TurnAccepted(agent="a", owner_uid=0, message=question)),
        (100, ev.StepRouted(step=0, attempt=0, target="m", route={})),
        (2_000, ev.StepCompleted(step=0, attempt=0, target="m", message=message_to_json(wanted),
                                 stop_reason="tool_use", usage={})),
        (2_000, ev.ApprovalAsked(approval_id="p", step=0, call_id="c1", tool="shell",
                                 summary="$ x", call_hash="h")),
        (9_000_000, ev.TurnResumed(reason="the daemon was restarted")),
        (50_002_000, ev.ApprovalAnswered(approval_id="p", call_id="c1", decision="allow_once",
                                         by_uid=0)),
        (50_003_000, ev.ToolCompleted(step=0, call_id="c1", tool="shell",
                                      result=block_to_json(result), waited_ms=500)),
    ]  # fmt: skip
    events = [
        Event(seq, "s", body.kind, dict(body.draft("s", "t").body), "t", 1, at_ms)
        for seq, (at_ms, body) in enumerate(bodies, 1)
    ]
    assert fold(events).elapsed_s(50_004_000) == 4.0 - 0.5
