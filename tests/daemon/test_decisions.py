"""Decisions of a real dispatcher, in a real journal: told in words, by subject, after a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.daemon.decisions import Decisions
from appliance.errors import EngineError, NotFound
from appliance.scheduler.core import Core
from appliance.scheduler.dispatcher import Scheduler
from appliance.scheduler.leases import LeaseRequest
from appliance.scheduler.placing import BestFit
from appliance.scheduler.values import AgentSpec, DeviceView, ModelSpec, Record
from appliance.store.database import Database
from appliance.store.journal import Journal
from tests.scheduler.conftest import Workshop

GIB = 1 << 30


async def work(decisions: Decisions) -> None:
    """Two models that share a card, one that fails, and one that nobody knows."""
    workshop = Workshop()
    core = Core(BestFit())
    async with Scheduler(core, workshop, SystemClock(), on_decision=decisions.take) as scheduler:
        await scheduler.inventory_changed([DeviceView("gpu0", 10 * GIB)])
        models = [ModelSpec(name, 4, demand=6 * GIB, load_s=0.01) for name in "abc"]
        await scheduler.reconfigure(models, [AgentSpec("x", ("a", "b"))])
        for number, model in enumerate("ab"):
            async with scheduler.lease(LeaseRequest(f"r{number}", "x", (model,))):
                pass
        workshop.errors["c"] = EngineError("no such file")
        with pytest.raises(EngineError):
            async with scheduler.lease(LeaseRequest("r2", "x", ("c",))):
                pass
        with pytest.raises(NotFound):
            async with scheduler.lease(LeaseRequest("r3", "x", ("zz",))):
                pass


async def lines(decisions: Decisions, subject: str) -> list[str]:
    found, records = await decisions.about(subject)
    assert len(found) == len(records)
    assert not any("{" in line for line in found), "a record without a sentence"
    return [line.split("  ", 1)[1] for line in found]


async def test_decisions_are_told_by_subject_and_those_about_models_outlive_the_daemon(
    tmp_path: Path,
) -> None:
    clock = SystemClock()
    async with Database(tmp_path) as database, Decisions(Journal(database, clock), clock) as ours:
        await work(ours)
        [refusal] = [line for line in await lines(ours, "refusal") if line.startswith("r3")]
        assert refusal.startswith("r3 was refused (not_found)")
        assert (await lines(ours, "r0"))[0].startswith("r0 of agent x got a slot of a after")
        await lines(ours, "all")
    async with Database(tmp_path) as database, Decisions(Journal(database, clock), clock) as later:
        evicted = await lines(later, "eviction")
        assert evicted[0].startswith("a makes way for b: it is ")
        loaded = await lines(later, "load")
        assert loaded[0].startswith("a is loaded (6.0 GiB on gpu0) with 4 slots: one step waits")
        assert any(line.startswith("c could not be loaded: no such file") for line in loaded)
        assert await lines(later, "refusal") == []
        assert all("a" in line.split()[0] or " a" in line for line in await lines(later, "a"))


async def test_a_flood_of_decisions_is_written_without_holding_up_the_scheduler(
    tmp_path: Path,
) -> None:
    clock = SystemClock()
    async with Database(tmp_path) as database:
        journal = Journal(database, clock)
        async with Decisions(journal, clock) as decisions:
            for number in range(500):
                decisions.take(Record(0.0, "gone", f"m{number}", {}))
                if number % 100 == 0:
                    await asyncio.sleep(0)
        events = await journal.read("scheduler", limit=1000)
        assert [event.body["subject"] for event in events] == [f"m{n}" for n in range(500)]
