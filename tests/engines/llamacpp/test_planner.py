"""The batch planner as a pure function."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.engines.llamacpp.planner import Limits, Pace, Runnable, plan_step

LIMITS = Limits(step_tokens=64, prompt_tokens_beside_streams=16, prompt_tokens_alone=64)


def stream(sequence: int, **fields: object) -> Runnable:
    given_fields = {"priority": 1, "arrival": sequence, "pending_tokens": 1, "is_streaming": True}
    return Runnable(sequence, **{**given_fields, **fields})


def prompt(sequence: int, tokens: int, **fields: object) -> Runnable:
    return stream(sequence, pending_tokens=tokens, is_streaming=False, **fields)


@st.composite
def crowds(draw: st.DrawFn) -> list[Runnable]:
    count = draw(st.integers(1, 24))
    return [
        Runnable(
            sequence=n,
            priority=draw(st.integers(0, 2)),
            arrival=draw(st.integers(0, 100)),
            is_streaming=(is_streaming := draw(st.booleans())),
            pending_tokens=1 if is_streaming else draw(st.integers(1, 500)),
            last_served=draw(st.integers(-1, 50)),
            adapter=draw(st.sampled_from([None, "a", "b"])),
        )
        for n in range(count)
    ]


@given(crowds())
def test_a_plan_keeps_every_limit(crowd: list[Runnable]) -> None:
    by_sequence = {r.sequence: r for r in crowd}
    plan = plan_step(crowd, LIMITS)
    assert plan is not None
    granted = {g.sequence: g.tokens for g in plan.grants}
    assert len(granted) == len(plan.grants) > 0
    assert sum(granted.values()) <= LIMITS.step_tokens
    assert all(0 < t <= by_sequence[s].pending_tokens for s, t in granted.items())
    assert all(by_sequence[s].adapter == plan.adapter for s in granted)
    prompts = sum(t for s, t in granted.items() if not by_sequence[s].is_streaming)
    if any(by_sequence[s].is_streaming for s in granted):
        assert prompts <= LIMITS.prompt_tokens_beside_streams


@given(crowds())
def test_every_stream_of_the_chosen_adapter_gets_its_token(crowd: list[Runnable]) -> None:
    plan = plan_step(crowd, LIMITS)
    assert plan is not None
    granted = {g.sequence for g in plan.grants}
    streams = {r.sequence for r in crowd if r.is_streaming and r.adapter == plan.adapter}
    assert streams <= granted


@given(crowds())
def test_with_finite_work_everyone_is_finished(crowd: list[Runnable]) -> None:
    left = {r.sequence: r for r in crowd}
    budget = sum(r.pending_tokens for r in crowd) + len(crowd)
    for step in range(100, 100 + budget):
        plan = plan_step(list(left.values()), LIMITS)
        if plan is None:
            break
        for grant in plan.grants:
            was = left.pop(grant.sequence)
            if was.pending_tokens > grant.tokens:
                left[grant.sequence] = Runnable(
                    was.sequence,
                    was.priority,
                    was.arrival,
                    was.pending_tokens - grant.tokens,
                    was.is_streaming,
                    step,
                    was.adapter,
                )
    assert not left


def test_interactive_prompt_goes_before_an_older_background_one() -> None:
    plan = plan_step([prompt(0, 100, priority=2), prompt(1, 100, priority=0)], LIMITS)
    assert plan is not None
    assert [(g.sequence, g.tokens) for g in plan.grants] == [(1, 64)]


def test_a_long_prompt_does_not_hold_up_a_stream() -> None:
    plan = plan_step([stream(0), prompt(1, 5000)], LIMITS)
    assert plan is not None
    assert {g.sequence: g.tokens for g in plan.grants} == {0: 1, 1: 16}


def test_adapters_take_turns() -> None:
    served = [stream(0, adapter="a", last_served=5), stream(1, adapter="b", last_served=4)]
    plan = plan_step(served, LIMITS)
    assert plan is not None
    assert plan.adapter == "b"


def test_nothing_to_run_is_no_plan() -> None:
    assert plan_step([], LIMITS) is None


def test_pace_turns_seconds_into_tokens() -> None:
    assert Pace().limits(512).prompt_tokens_beside_streams == 16
    fast = Pace().seen(500, 0.05).limits(512)
    assert (fast.prompt_tokens_beside_streams, fast.prompt_tokens_alone) == (512, 512)
    slow = Pace().seen(100, 2.0).limits(512)
    assert (slow.prompt_tokens_beside_streams, slow.prompt_tokens_alone) == (16, 64)
    assert Pace(50.0).seen(5, 0.0001) == Pace(50.0)
