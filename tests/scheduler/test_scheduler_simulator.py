"""Whole hours of agents at work, in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.scheduler.policy import Policy
from appliance.scheduler.simulator import Agent, fifo_turns, simulate
from appliance.scheduler.values import DeviceView, ModelSpec

LOAD_S = 20.0
AGENTS = [Agent("a", "x"), Agent("b", "x"), Agent("c", "y"), Agent("d", "z")]
MODELS = [ModelSpec(name, 1, demand=80, load_s=LOAD_S) for name in "xyz"]


def test_four_agents_on_three_models_get_twice_the_turns_of_first_come_first_served() -> None:
    ours = simulate(AGENTS, MODELS, [DeviceView("gpu0", 100)], hours=8)
    fifo = fifo_turns(AGENTS, LOAD_S, hours=8)
    assert ours.total_turns >= 2 * fifo.total_turns, (ours, fifo)
    assert max(ours.turns.values()) <= 4 * min(ours.turns.values()), "nobody pays for it"
    assert ours.most_overtaken <= Policy().max_overtaken


@given(
    owners=st.lists(st.integers(1, 3), min_size=2, max_size=6),
    load_s=st.floats(5, 40),
    step_s=st.floats(1, 10),
    pause_s=st.floats(0, 1.5),
    slots=st.integers(1, 3),
)
@settings(max_examples=12, deadline=None)
def test_agents_get_the_same_however_many_share_a_model(
    owners: list[int], load_s: float, step_s: float, pause_s: float, slots: int
) -> None:
    agents = [
        Agent(f"a{model}.{n}", f"m{model}", 1, step_s, pause_s)
        for model, count in enumerate(owners)
        for n in range(count)
    ]
    models = [ModelSpec(f"m{n}", slots, demand=80, load_s=load_s) for n in range(len(owners))]
    ours = simulate(agents, models, [DeviceView("gpu0", 100)], hours=1)
    assert max(ours.turns.values()) <= 3 * min(ours.turns.values())
    assert ours.most_overtaken <= Policy().max_overtaken


@pytest.mark.parametrize("unit", [0.1, 1.0, 10.0])
def test_an_agent_of_twice_the_weight_gets_a_turn_twice_as_long(unit: float) -> None:
    agents = [Agent("a", "x", weight=2 * unit), Agent("b", "y", weight=unit)]
    ours = simulate(agents, MODELS[:2], [DeviceView("gpu0", 100)], hours=8)
    assert 1.7 < ours.turns["a"] / ours.turns["b"] < 2.3


@pytest.mark.parametrize(
    ("agents_a_model", "models", "step_s", "pause_s", "load_s", "slots", "size"),
    [
        (1, 3, 5.0, 0.0, 20.0, 1, 80),
        (2, 4, 4.0, 1.0, 10.0, 2, 80),
        (2, 4, 4.0, 1.0, 10.0, 2, 40),
        (3, 5, 2.0, 0.5, 15.0, 4, 30),
    ],
)
def test_waits_for_a_place_are_as_long_as_was_predicted_in_the_mean(
    agents_a_model: int,
    models: int,
    step_s: float,
    pause_s: float,
    load_s: float,
    slots: int,
    size: int,
) -> None:
    agents = [
        Agent(f"a{model}.{n}", f"m{model}", 6, step_s, pause_s)
        for model in range(models)
        for n in range(agents_a_model)
    ]
    specs = [ModelSpec(f"m{n}", slots, demand=size, load_s=load_s) for n in range(models)]
    waits = simulate(agents, specs, [DeviceView("gpu0", 100)], hours=4).waits_s
    assert len(waits) > 100
    predicted_s, waited_s = (sum(each) for each in zip(*waits, strict=True))
    assert 0.6 < predicted_s / waited_s < 1.6
