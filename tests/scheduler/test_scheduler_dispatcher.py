"""The real dispatcher over a real (tiny) engine: leases, loads, failures, cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from appliance.clock import SystemClock
from appliance.errors import EngineError, ModelBroken, NoCapacity, NotFound, Overloaded
from appliance.gpu.types import GIB
from appliance.scheduler.core import Core
from appliance.scheduler.dispatcher import Scheduler
from appliance.scheduler.leases import LeaseRequest
from appliance.scheduler.memory_placer import MemoryPlacer
from appliance.scheduler.placing import BestFit
from appliance.scheduler.policy import Policy
from appliance.scheduler.together import parts
from appliance.scheduler.values import AgentSpec, DeviceView, ModelSpec, Record
from appliance.types import Progress
from tests.scheduler.test_best import CARD
from tests.scheduler.test_together import chat

Make = Any


def spec(name: str, size: int = 60, slots: int = 4, fingerprint: str = "") -> ModelSpec:
    return ModelSpec(name, slots=slots, demand=size, load_s=0.01, fingerprint=fingerprint)


@asynccontextmanager
async def scheduler(
    workshop: Any,
    *specs: ModelSpec,
    policy: Policy | None = None,
    on_decision: Callable[[Record], None] | None = None,
) -> AsyncIterator[Scheduler]:
    async with Scheduler(
        Core(BestFit(), policy), workshop, SystemClock(), on_decision=on_decision
    ) as running:
        await running.inventory_changed([DeviceView("gpu0", 100)])
        await running.reconfigure(specs, [])
        yield running


async def test_a_thousand_concurrent_first_requests_cause_one_load(make_workshop: Make) -> None:
    workshop = make_workshop()
    async with scheduler(workshop, spec("a")) as running:

        async def one(number: int) -> str:
            async with running.lease(LeaseRequest(f"r{number}", f"agent{number}", ("a",))) as lease:
                return lease.model

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(number)) for number in range(1000)]
        assert [task.result() for task in tasks] == ["a"] * 1000
    assert workshop.loads == ["a"]
    assert workshop.unloads == ["a"]


async def test_who_waits_for_a_load_is_told_how_far_it_is(make_workshop: Make) -> None:
    workshop = make_workshop()
    workshop.may_load.clear()
    told: asyncio.Queue[Progress] = asyncio.Queue()
    async with scheduler(workshop, spec("a"), spec("b")) as running:

        async def one() -> None:
            async with running.lease(LeaseRequest("r", "x", ("a",), progress=told)):
                pass

        waiting = asyncio.create_task(one())
        async with asyncio.timeout(30):
            assert await told.get() == Progress("loading", 25, 100)
        assert (running.load_progress("a"), running.load_progress("b")) == (0.25, 0.0)
        workshop.may_load.set()
        await waiting
        assert running.load_progress("a") == 0.0, "it is not starting any more"


async def test_models_in_use_are_loaded_side_by_side_with_fewer_slots(make_workshop: Make) -> None:
    core = Core(MemoryPlacer(lambda: core.holdings(), lambda _: False))
    async with Scheduler(core, make_workshop(), SystemClock(), parts=parts) as running:
        await running.inventory_changed([DeviceView("gpu0", CARD)])
        await running.reconfigure([chat("a"), chat("b")], [])
        for number in range(40):
            async with running.lease(LeaseRequest(f"r{number}", "x", ("ab"[number % 2],))):
                pass
            models = running.snapshot().models.values()
            if all(model.vram_bytes == 12 * GIB for model in models):
                break
        else:
            raise AssertionError(f"they still take turns: {models}")


async def test_another_model_takes_the_place_of_an_idle_one(make_workshop: Make) -> None:
    workshop = make_workshop()
    decided: list[Record] = []
    async with scheduler(workshop, spec("a"), spec("b"), on_decision=decided.append) as running:
        for number, model in enumerate(["a", "b", "a"]):
            async with running.lease(LeaseRequest(f"r{number}", "x", (model,))) as lease:
                assert lease.model == model
        assert workshop.loads == ["a", "b", "a"]
    assert [record.subject for record in decided if record.kind == "evict"] == ["a", "b"]


async def test_what_can_never_fit_is_refused_with_its_numbers(make_workshop: Make) -> None:
    async with scheduler(make_workshop(), spec("a", size=101)) as running:
        with pytest.raises(NoCapacity, match="needs 101 bytes"):
            async with running.lease(LeaseRequest("r", "x", ("a",))):
                pass
        with pytest.raises(NotFound):
            async with running.lease(LeaseRequest("r", "x", ("zz",))):
                pass


async def test_a_cancelled_waiter_leaves_no_lease_behind(make_workshop: Make) -> None:
    workshop = make_workshop(slots=1)
    async with scheduler(workshop, spec("a", slots=1)) as running:

        async def hold() -> None:
            async with running.lease(LeaseRequest("waiter", "x", ("a",))):
                await asyncio.Event().wait()

        async with running.lease(LeaseRequest("first", "x", ("a",))):
            waiter = asyncio.create_task(hold())
            await running.heartbeat()
            await running.heartbeat()
            assert running.snapshot().waiting == 1
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
            await running.heartbeat()
            assert running.snapshot().waiting == 0
        await running.heartbeat()
        assert running.snapshot().leases == 0
        async with running.lease(LeaseRequest("next", "x", ("a",))):
            pass


async def test_a_broken_model_is_refused_at_once_and_names_its_reason(make_workshop: Make) -> None:
    workshop = make_workshop()
    workshop.errors["a"] = ModelBroken("a.gguf is not a model")
    async with scheduler(workshop, spec("a")) as running:
        with pytest.raises(ModelBroken, match=r"a\.gguf is not a model"):
            async with running.lease(LeaseRequest("r1", "x", ("a",))):
                pass
        with pytest.raises(ModelBroken):
            async with running.lease(LeaseRequest("r2", "x", ("a",))):
                pass
        assert workshop.loads == ["a"]


async def test_three_crashes_open_the_breaker_and_the_refusal_tells_the_last_words(
    make_workshop: Make,
) -> None:
    workshop = make_workshop()
    workshop.errors["a"] = EngineError("exit 134", details={"log_tail": "CUDA error"})
    async with scheduler(workshop, spec("a"), policy=Policy(backoff_s=0.001)) as running:
        with pytest.raises(EngineError, match="CUDA error") as caught:
            async with running.lease(LeaseRequest("r1", "x", ("a",))):
                pass
        assert workshop.loads == ["a"] * 3
        assert caught.value.retry_after_s is not None


async def test_a_dead_instance_is_replaced_for_the_next_request(make_workshop: Make) -> None:
    workshop = make_workshop()
    async with scheduler(workshop, spec("a")) as running:
        async with running.lease(LeaseRequest("r1", "x", ("a",))):
            workshop.live[0].die()
        async with running.lease(LeaseRequest("r2", "x", ("a",))) as lease:
            assert lease.engine is workshop.live[-1]


async def test_a_changed_model_is_drained_and_loaded_anew(make_workshop: Make) -> None:
    workshop = make_workshop()
    async with scheduler(workshop, spec("a")) as running:
        async with running.lease(LeaseRequest("r1", "x", ("a",))) as old:
            await running.reconfigure([spec("a", fingerprint="new")], [AgentSpec("x", ("a",))])
            assert workshop.unloads == []
            assert old.engine.state == "ready"
        async with running.lease(LeaseRequest("r2", "x", ("a",))) as new:
            assert new.engine is not old.engine
        assert workshop.loads == ["a", "a"]


async def test_drain_refuses_new_work_and_waits_for_the_old(make_workshop: Make) -> None:
    workshop = make_workshop()
    async with scheduler(workshop, spec("a")) as running:
        async with running.lease(LeaseRequest("r1", "x", ("a",))):
            draining = asyncio.create_task(running.drain())
            await running.heartbeat()
            assert not draining.done()
            with pytest.raises(Overloaded):
                async with running.lease(LeaseRequest("r2", "x", ("a",))):
                    pass
        await draining


async def test_a_model_that_is_removed_while_it_loads_does_not_finish_loading(
    make_workshop: Make,
) -> None:
    workshop = make_workshop()
    workshop.may_load.clear()
    async with scheduler(workshop, spec("a"), spec("b", size=10)) as running:

        async def ask() -> None:
            async with running.lease(LeaseRequest("r1", "x", ("a",))):
                raise AssertionError("the model is gone")

        asking = asyncio.create_task(ask())
        while workshop.loads != ["a"]:
            await running.heartbeat()
        await running.reconfigure([spec("b", size=10)], [])
        with pytest.raises(NotFound):
            await asking
        while running.snapshot().devices[0].reserved_bytes:
            await running.heartbeat()
        workshop.may_load.set()
        async with running.lease(LeaseRequest("r2", "x", ("b",))) as lease:
            assert lease.model == "b"
    assert workshop.loads == ["a", "b"]


async def test_shutdown_does_not_wait_for_a_slow_load(make_workshop: Make) -> None:
    workshop = make_workshop()
    workshop.may_load.clear()
    async with asyncio.timeout(60), scheduler(workshop, spec("a")) as running:
        asking = asyncio.create_task(running.lease(LeaseRequest("r", "x", ("a",))).__aenter__())
        while workshop.loads != ["a"]:
            await running.heartbeat()
    with pytest.raises(Overloaded):
        await asking


async def test_files_are_read_ahead_while_the_model_before_still_works(
    make_workshop: Make,
) -> None:
    workshop, reading, read = make_workshop(), asyncio.Event(), asyncio.Event()

    async def read_ahead(model: str) -> None:
        assert model == "b"
        reading.set()
        await read.wait()

    async with Scheduler(
        Core(BestFit()), workshop, SystemClock(), read_ahead=read_ahead
    ) as running:
        await running.inventory_changed([DeviceView("gpu0", 100)])
        await running.reconfigure([spec("a"), spec("b")], [])

        async def ask_b() -> None:
            async with running.lease(LeaseRequest("second", "y", ("b",))):
                pass

        async with running.lease(LeaseRequest("first", "x", ("a",))):
            waiter = asyncio.create_task(ask_b())
            await reading.wait()
            assert workshop.loads == ["a"], "it has not given its place"
        await waiter  # whether the reading is over or not
