"""The configuration edited at random while agents work: nothing dropped, doubled or mixed up."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from typing import Any

import pytest

from appliance.clock import SystemClock
from appliance.engines.base import Engine
from appliance.scheduler.core import Core
from appliance.scheduler.dispatcher import Scheduler
from appliance.scheduler.leases import LeaseRequest
from appliance.scheduler.placing import BestFit
from appliance.scheduler.values import AgentSpec, DeviceView, ModelSpec
from appliance.types import Completion, GenerateRequest

AGENTS = 8
NAMES = [f"m{n}" for n in range(5)]


class Edits:
    """Agents that ask for the model they are bound to, and an operator who rebinds and resizes."""

    def __init__(self, scheduler: Scheduler, rng: random.Random) -> None:
        self.scheduler, self.rng = scheduler, rng
        self.bound = [rng.choice(NAMES) for _ in range(AGENTS)]
        self.version = dict.fromkeys(NAMES, 0)
        self.asked = 0
        self.answered: Counter[str] = Counter()
        self.done = False

    async def apply(self) -> None:
        specs = [
            ModelSpec(name, 2, demand=45, load_s=0.01, fingerprint=str(self.version[name]))
            for name in NAMES
        ]
        agents = [AgentSpec(f"a{n}", (model,)) for n, model in enumerate(self.bound)]
        await self.scheduler.reconfigure(specs, agents)

    async def edit(self, edits: int) -> None:
        """One edit at a time, with a few steps in between; more than wanted where loads take so
        long that too little was answered meanwhile."""
        for number in itertools.count():
            if number >= edits and self.answered.total() > edits / 4:
                break
            if self.rng.random() < 0.6:
                self.bound[self.rng.randrange(AGENTS)] = self.rng.choice(NAMES)
            else:
                self.version[self.rng.choice(NAMES)] += 1
            await self.apply()
            seen = self.answered.total()
            while self.rng.random() < 0.5 and self.answered.total() < seen + 3:
                await self.scheduler.heartbeat()
        self.done = True

    async def work(self, agent: int) -> None:
        while not self.done:
            self.asked += 1
            model, request_id = self.bound[agent], f"r{self.asked}"
            async with self.scheduler.lease(
                LeaseRequest(request_id, f"a{agent}", (model,))
            ) as lease:
                said = await _said(lease.engine)
            assert (lease.model, said) == (model, model), "the answer is the bound model's"
            self.answered[request_id] += 1


async def _said(engine: Engine) -> str:
    """The text of an answer, yielding to others before and after each part."""
    text = ""
    async for part in engine.generate(GenerateRequest("r", ())):
        await asyncio.sleep(0)
        if isinstance(part, Completion):
            text = part.message.text
    return text


@pytest.mark.parametrize("edits", [60, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("seed", range(3))
async def test_random_edits_under_load_drop_double_and_mix_nothing(
    make_workshop: Any, edits: int, seed: int
) -> None:
    workshop = make_workshop(slots=2)
    async with Scheduler(Core(BestFit()), workshop, SystemClock()) as scheduler:
        await scheduler.inventory_changed([DeviceView("gpu0", 100)])
        world = Edits(scheduler, random.Random(seed))
        await world.apply()
        async with asyncio.timeout(300), asyncio.TaskGroup() as group:
            for agent in range(AGENTS):
                group.create_task(world.work(agent))
            group.create_task(world.edit(edits))
        assert world.answered.total() == world.asked > edits / 4
        assert set(world.answered.values()) == {1}
        assert scheduler.snapshot().waiting == 0
    assert len(workshop.unloads) <= len(workshop.loads)
