"""A conversation outlives the eviction of its model: real worker, real small model, real files."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.engines.base import Engine
from appliance.engines.llamacpp.engine import LlamaCppEngine
from appliance.engines.llamacpp.params import LlamaCppParams
from appliance.scheduler.core import Core
from appliance.scheduler.dispatcher import Scheduler
from appliance.scheduler.leases import LeaseRequest
from appliance.scheduler.placing import BestFit
from appliance.scheduler.values import DeviceView, ModelSpec, Record
from appliance.types import (
    Completion,
    GenerateRequest,
    Message,
    Priority,
    Role,
    Sampling,
    text_message,
)

pytestmark = pytest.mark.model

RULES = "You are the clerk of a library. " + " ".join(f"Shelf {n} holds maps." for n in range(30))


class Factory:
    """Two models of one file; the card holds one of them."""

    def __init__(self, path: Path, folder: Path) -> None:
        pytest.importorskip("llama_cpp")
        self.params = LlamaCppParams(path, context_window=2048, slots=2, park_dir=folder / "park")

    def create(self, model: str, placement: object) -> Engine:
        return LlamaCppEngine(self.params)


class Desk:
    """Turns of conversations, each with all that was said before."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.said: dict[str, tuple[Message, ...]] = {}
        self.number = 0

    async def turn(
        self, model: str, talk: str, text: str, priority: Priority = Priority.NORMAL
    ) -> Completion:
        self.number += 1
        before = self.said.get(talk, (text_message(Role.SYSTEM, f"{RULES} This is {talk}."),))
        messages = (*before, text_message(Role.USER, text))
        request = GenerateRequest(
            f"g{self.number}",
            messages,
            sampling=Sampling(max_tokens=24, temperature=0.0),
            cache_key=talk,
        )
        need = LeaseRequest(f"r{self.number}", talk, (model,), priority)
        async with self.scheduler.lease(need) as lease:
            async for item in lease.engine.generate(request):
                if isinstance(item, Completion):
                    self.said[talk] = (*messages, item.message)
                    return item
        raise AssertionError("no completion")


async def test_an_evicted_models_conversations_go_on_where_they_were(
    tmp_path: Path, default_model_path: Path
) -> None:
    factory = Factory(default_model_path, tmp_path)
    specs = [ModelSpec(name, slots=2, demand=60, fingerprint=name) for name in "ab"]
    decided: list[Record] = []
    async with Scheduler(
        Core(BestFit()), factory, SystemClock(), on_decision=decided.append
    ) as scheduler:
        await scheduler.inventory_changed([DeviceView("gpu0", 100)])
        await scheduler.reconfigure(specs, [])
        desk = Desk(scheduler)
        idle = await desk.turn("a", "idle", "Where are the maps?")
        at_work = asyncio.create_task(desk.turn("a", "at work", "Where are the books?"))
        while scheduler.snapshot().leases == 0:
            await scheduler.heartbeat()
        await desk.turn("b", "other", "Who is there?", Priority.INTERACTIVE)
        worked = await at_work
        kinds = [record.kind for record in decided if record.subject == "a"]
        assert kinds.count("stop") == 1, "it was evicted"
        for talk, first in (("idle", idle), ("at work", worked)):
            again = await desk.turn("a", talk, "And then?")
            assert again.usage.cached_tokens >= first.usage.prompt_tokens - 1
