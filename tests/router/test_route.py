"""The four questions before a step runs: may it, can it, should it, in that order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.router.route import route
from appliance.router.types import (
    BreakerState,
    NoRoute,
    Place,
    Policy,
    Prices,
    Reason,
    Rejection,
    Route,
    Score,
    StepFacts,
    TargetFacts,
    Tuning,
)
from appliance.types import Label

LOCAL = TargetFacts("qwen", Place.LOCAL, 32_768, is_resident=True, tokens_per_s=60.0)
CLAUDE = TargetFacts(
    "claude",
    Place.CLOUD,
    200_000,
    supports_images=True,
    prices=Prices(3_000_000, 15_000_000, 300_000, 3_750_000),
    first_token_s=1.0,
    prefill_tokens_per_s=20_000.0,
)
STEP = StepFacts(
    "coder", Policy.BALANCED, Label.PUBLIC, ("qwen", "claude"), 2_000, 1_000, text="fix the test"
)
EVEN = Score(0.80, 0.82, params_version="t")
HARD = Score(0.30, 0.90, params_version="t")


def routed(step: StepFacts = STEP, score: Score = EVEN, draw: float = 0.9, **targets: object):
    local = replace(LOCAL, **targets.get("local", {}))
    claude = replace(CLAUDE, **targets.get("claude", {}))
    return route(step, [local, claude], score, draw)


def test_an_easy_step_stays_on_the_machine() -> None:
    found = routed()
    assert isinstance(found, Route)
    assert found.target == "qwen"
    assert found.reasons == (Reason.BEST_WORTH,)


def test_a_step_that_local_would_likely_fail_goes_to_the_cloud() -> None:
    found = routed(score=HARD)
    assert isinstance(found, Route)
    assert found.target == "claude"


@pytest.mark.parametrize("policy", list(Policy))
def test_private_never_leaves_whatever_the_policy(policy: Policy) -> None:
    found = routed(replace(STEP, policy=policy, label=Label.PRIVATE), HARD)
    if policy is Policy.CLOUD_ONLY:
        assert isinstance(found, NoRoute)
        assert found.reasons["claude"] == (Rejection.LABEL,)
    else:
        assert isinstance(found, Route)
        assert found.place is Place.LOCAL


def test_a_full_gpu_spills_over_and_an_idle_one_pulls_back() -> None:
    full = routed(local={"wait_s": 40.0, "queue": 6})
    assert isinstance(full, Route)
    assert full.target == "claude"
    assert Reason.SPILL_OVER in full.reasons
    idle = routed()
    assert isinstance(idle, Route)
    assert idle.target == "qwen"


def test_a_tool_loop_keeps_its_model_even_when_the_score_leans_the_other_way() -> None:
    inside = replace(STEP, in_tool_loop=True, history_target="qwen", step_index=3)
    found = routed(inside, Score(0.60, 0.90))
    assert isinstance(found, Route)
    assert (found.target, found.reasons) == ("qwen", (Reason.STICKY,))


def test_a_tool_loop_that_keeps_failing_is_handed_over() -> None:
    failing = replace(
        STEP, in_tool_loop=True, history_target="qwen", step_index=6, failures_in_a_row=2
    )
    found = routed(failing, HARD)
    assert isinstance(found, Route)
    assert found.target == "claude"


def test_a_long_history_that_the_other_side_never_read_is_a_reason_to_stay() -> None:
    here = replace(
        STEP, prompt_tokens=30_000, history_target="claude", cached_tokens={"claude": 29_000}
    )
    there = replace(here, history_target="qwen", cached_tokens={"qwen": 29_000})
    score = Score(0.65, 0.90)
    stays = routed(here, score)
    moves = routed(there, score)
    assert isinstance(stays, Route)
    assert isinstance(moves, Route)
    assert stays.target == "claude"
    assert moves.target == "qwen"


def test_an_escalated_turn_stays_in_the_cloud_until_its_end() -> None:
    found = routed(replace(STEP, escalated=True))
    assert isinstance(found, Route)
    assert (found.target, found.reasons) == ("claude", (Reason.ESCALATED,))


def test_cloud_first_goes_to_the_cloud_and_comes_home_when_the_budget_is_spent() -> None:
    step = replace(STEP, policy=Policy.CLOUD_FIRST)
    rich = routed(step)
    poor = routed(step, claude={"budget_left_micro_usd": 10})
    assert isinstance(rich, Route)
    assert isinstance(poor, Route)
    assert rich.target == "claude"
    assert (poor.target, poor.reasons) == ("qwen", (Reason.FALL_BACK,))


def test_a_deadline_that_the_queue_cannot_meet_rules_a_target_out() -> None:
    found = routed(replace(STEP, time_left_s=15.0), local={"load_s": 30.0})
    assert isinstance(found, Route)
    assert found.target == "claude"
    assert found.candidates[0].rejections == (Rejection.DEADLINE,)


def test_the_last_usable_backend_is_tried_though_its_breaker_is_open() -> None:
    step = replace(STEP, policy=Policy.LOCAL_ONLY)
    found = routed(step, local={"breaker": BreakerState.OPEN})
    assert isinstance(found, Route)
    assert (found.target, found.reasons) == ("qwen", (Reason.LAST_USABLE,))


def test_no_route_names_every_reason_for_every_target() -> None:
    step = replace(STEP, label=Label.PRIVATE, air_gap=True, needs_images=True)
    found = routed(step)
    assert isinstance(found, NoRoute)
    assert found.reasons == {
        "qwen": (Rejection.IMAGES,),
        "claude": (Rejection.AIR_GAP, Rejection.LABEL),
    }


def test_exploration_states_the_propensity_it_had() -> None:
    lucky = routed(draw=0.001)
    usual = routed(draw=0.5)
    assert isinstance(lucky, Route)
    assert isinstance(usual, Route)
    assert (lucky.target, lucky.reasons) == ("claude", (Reason.EXPLORED,))
    assert lucky.propensity == pytest.approx(0.02)
    assert lucky.propensity + usual.propensity == pytest.approx(1.0)


steps = st.builds(
    StepFacts,
    agent=st.just("a"),
    policy=st.sampled_from(Policy),
    label=st.sampled_from(Label),
    chain=st.permutations(["qwen", "small", "claude"]).map(tuple),
    prompt_tokens=st.integers(0, 300_000),
    max_output_tokens=st.integers(1, 8_000),
    needs_tools=st.booleans(),
    needs_images=st.booleans(),
    failures_in_a_row=st.integers(0, 3),
    step_index=st.integers(0, 30),
    turn_steps_limit=st.integers(0, 30),
    history_target=st.sampled_from([None, "qwen", "small", "claude", "gone"]),
    in_tool_loop=st.booleans(),
    escalated=st.booleans(),
    cached_tokens=st.dictionaries(
        st.sampled_from(["qwen", "claude"]), st.integers(0, 400_000), max_size=2
    ),
    time_left_s=st.none() | st.floats(0, 600),
    air_gap=st.booleans(),
)


def targets_named(name: str, place: Place) -> st.SearchStrategy[TargetFacts]:
    return st.builds(
        TargetFacts,
        name=st.just(name),
        place=st.just(place),
        context_window=st.integers(1_000, 400_000),
        supports_tools=st.booleans(),
        supports_images=st.booleans(),
        prices=st.builds(Prices, *(st.integers(0, 20_000_000) for _ in range(4))),
        fits=st.booleans(),
        wait_s=st.floats(0, 300),
        load_s=st.floats(0, 100),
        breaker=st.sampled_from(BreakerState),
        budget_left_micro_usd=st.none() | st.integers(0, 1_000_000),
        rate_limit_tokens_left=st.none() | st.integers(0, 100_000),
        permitted=st.booleans(),
        max_label=st.sampled_from(Label),
    )


worlds = st.tuples(
    targets_named("qwen", Place.LOCAL),
    targets_named("small", Place.LOCAL),
    targets_named("claude", Place.CLOUD),
)
scores = st.builds(Score, st.floats(0, 1), st.floats(0, 1))
draws = st.floats(0, 1, exclude_max=True)


@given(steps, worlds, scores, draws)
def test_no_combination_sends_what_may_not_leave(
    step: StepFacts, world: tuple[TargetFacts, ...], score: Score, draw: float
) -> None:
    found = route(step, world, score, draw, Tuning(explore=0.5))
    if isinstance(found, NoRoute):
        assert all(not each.is_open for each in found.candidates)
        return
    if found.place is Place.CLOUD:
        assert step.label is not Label.PRIVATE
        assert step.policy is not Policy.LOCAL_ONLY
        assert not step.air_gap
        assert found.chosen.rejections in ((), (Rejection.BREAKER,))
    assert 0.0 < found.propensity <= 1.0


@given(steps, worlds, scores, draws)
def test_the_order_of_targets_does_not_matter_and_a_route_replays(
    step: StepFacts, world: tuple[TargetFacts, ...], score: Score, draw: float
) -> None:
    assert route(step, world, score, draw) == route(step, world[::-1], score, draw)


@given(steps, worlds, scores, st.integers(20, 60))
def test_the_stated_propensities_are_the_true_shares_of_the_draw(
    step: StepFacts, world: tuple[TargetFacts, ...], score: Score, parts: int
) -> None:
    tuning = Tuning(explore=0.5)
    found = [route(step, world, score, (i + 0.5) / parts, tuning) for i in range(parts)]
    for name in step.chain:
        hits = [each for each in found if isinstance(each, Route) and each.target == name]
        if hits:
            assert abs(len(hits) / parts - hits[0].propensity) < 2.0 / parts
