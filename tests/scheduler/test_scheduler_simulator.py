"""Whole hours of agents at work, in virtual time."""

from __future__ import annotations

from appliance.scheduler.simulator import Agent, fifo_turns, simulate
from appliance.scheduler.values import DeviceView, ModelSpec

LOAD_S = 20.0
AGENTS = [Agent("a", "x"), Agent("b", "x"), Agent("c", "y"), Agent("d", "z")]
MODELS = [ModelSpec(name, 1, demand=80, load_s=LOAD_S) for name in "xyz"]


def test_four_agents_on_three_models_get_twice_the_turns_of_first_come_first_served() -> None:
    ours = simulate(AGENTS, MODELS, [DeviceView("gpu0", 100)], hours=8)
    fifo = fifo_turns(AGENTS, LOAD_S, hours=8)
    assert ours.total_turns >= 2 * fifo.total_turns, (ours, fifo)
    assert min(ours.turns.values()) > 0
