"""The scheduler's shell: the one place that starts engines, wakes waiters and keeps time.

Callers, engines and the inventory speak to the core through one inbox; one task takes from it, asks
the core and performs the effects. Every instance is a task of its own that enters the engine, waits
until it is told to stop or the engine dies by itself, and reports when the process and its bytes
are gone. A lease is an `async with`: cancelling the caller at any point gives the slot back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, assert_never

from appliance.clock import Clock
from appliance.engines.base import Engine
from appliance.errors import (
    EngineError,
    Overloaded,
)
from appliance.scheduler.core import Core
from appliance.scheduler.leases import Lease, LeaseRequest
from appliance.scheduler.policy import Policy
from appliance.scheduler.ports import EngineFactory, MemoryWatch, Parts
from appliance.scheduler.refusals import error_of, failure_of
from appliance.scheduler.values import (
    AgentSpec,
    Capacity,
    ConfigChanged,
    DeviceView,
    DrainRequested,
    Effect,
    Event,
    Grant,
    InstanceFailed,
    InstanceGone,
    InstanceReady,
    InventoryChanged,
    LeaseReleased,
    ModelSpec,
    Preempt,
    ReadAhead,
    Record,
    Refuse,
    Shared,
    ShareOut,
    StartInstance,
    StepCancelled,
    StepRequested,
    StopInstance,
    Tick,
    WakeAt,
)
from appliance.types import Progress

log = logging.getLogger(__name__)


STUCK_BYTES_S = 5.0
"""A dead process whose bytes are not back after this is named in a record, and waited for on."""

_PROGRESS_EVERY_S = 1.0
"""How often a waiter is told that it still waits."""


@dataclass(slots=True, eq=False)
class _Running:
    """An instance's task as the dispatcher sees it.

    A start may take minutes. To end one, its task is cancelled inside the engine's enter, which
    cleans up after itself; an instance that has entered is asked by `stop`.
    """

    model: str
    engine: Engine | None = None
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    entering: bool = False
    task: asyncio.Task[None] | None = None
    pid: int | None = None

    def end(self) -> None:
        """Asks the instance to go, wherever it is. Asking twice is asking once."""
        if self.entering and self.task is not None and not self.stop.is_set():
            self.pid = None if self.engine is None else self.engine.pid
            self.task.cancel()
        self.stop.set()


class Scheduler:
    """Leases on engines. Use as `async with`; exit ends every instance.

    `read_ahead` brings a model's files closer while it waits for room; it does not raise.
    `on_decision` is called with each `Record`, on the loop, and must not block.
    """

    def __init__(
        self,
        core: Core,
        engines: EngineFactory,
        clock: Clock,
        *,
        memory: MemoryWatch | None = None,
        read_ahead: Callable[[str], Coroutine[None, None, None]] | None = None,
        on_decision: Callable[[Record], None] | None = None,
        parts: Parts | None = None,
    ) -> None:
        self._core = core
        self._engines = engines
        self._clock = clock
        self._memory = memory
        self._read_ahead = read_ahead
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._on_decision = on_decision
        self._parts = parts
        self._inbox: asyncio.Queue[tuple[Event, asyncio.Future[None] | None]] = asyncio.Queue()
        self._waiting: dict[str, asyncio.Future[Grant]] = {}
        self._leases: dict[str, Lease] = {}
        self._running: dict[str, _Running] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._group: asyncio.TaskGroup | None = None
        self._owner: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._owner = self._group.create_task(self._own_core(), name="scheduler")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._group is not None
        assert self._owner is not None
        if self._timer is not None:
            self._timer.cancel()
        for running in self._running.values():
            running.end()
        self._owner.cancel()
        for reading in self._reading.values():
            reading.cancel()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Overloaded("the daemon is stopping", retry_after_s=5.0))
        await self._group.__aexit__(kind, error, trace)

    # ── for callers ─────────────────────────────────────────────────────────────────────────────

    def lease(self, need: LeaseRequest) -> AbstractAsyncContextManager[Lease]:
        """Waits for a slot and holds it. Cancel-safe at every point.

        Raises `Overloaded` (with `retry_after_s`), `NoCapacity`, `DeadlineExceeded`, `NotFound`
        for a model that is not configured, `ModelBroken` or `EngineError`.
        """
        return self._lease(need)

    def snapshot(self) -> Capacity:
        """What there is now; frozen. Informs, never gates."""
        return self._core.capacity(self._clock.monotonic())

    def load_progress(self, model: str) -> float:
        """How much of a model that is starting is loaded, 0 to 1; 0 for one that is not."""
        starting = (r.engine for r in self._running.values() if r.entering and r.model == model)
        return max((engine.load_progress for engine in starting if engine is not None), default=0.0)

    async def reconfigure(
        self,
        models: Sequence[ModelSpec],
        agents: Sequence[AgentSpec],
        policy: Policy | None = None,
    ) -> None:
        """Replaces the wanted state; returns once the core has decided, not once it is done."""
        await self._tell_and_wait(ConfigChanged(tuple(models), tuple(agents), policy))

    async def inventory_changed(self, devices: Sequence[DeviceView]) -> None:
        await self._tell_and_wait(InventoryChanged(tuple(devices)))

    async def drain(self) -> None:
        """No new work; returns when the last lease is back. Bound it with a timeout."""
        await self._tell_and_wait(DrainRequested())
        await self._idle.wait()

    async def heartbeat(self) -> None:
        """Goes through the core and back: proof for the watchdog that it still decides."""
        await self._tell_and_wait(Tick())

    # ── leases ──────────────────────────────────────────────────────────────────────────────────

    @asynccontextmanager
    async def _lease(self, need: LeaseRequest) -> AsyncIterator[Lease]:
        grant = await self._wait_for_grant(need)
        lease = self._leases[grant.lease_id]
        started_s = self._clock.monotonic()
        try:
            yield lease
        finally:
            del self._leases[grant.lease_id]
            tokens = lease.usage.output_tokens if lease.usage else 0
            seconds = self._clock.monotonic() - started_s
            self._tell(LeaseReleased(grant.lease_id, tokens, seconds))
            if not self._leases:
                self._idle.set()

    async def _wait_for_grant(self, need: LeaseRequest) -> Grant:
        future: asyncio.Future[Grant] = asyncio.get_running_loop().create_future()
        assert need.request_id not in self._waiting, f"{need.request_id} already waits"
        self._waiting[need.request_id] = future
        self._tell(_step(need))
        try:
            if need.progress is None:
                return await future
            while not future.done():
                await asyncio.wait([future], timeout=_PROGRESS_EVERY_S)
                if not future.done():
                    need.progress.put_nowait(self._progress(need))
            return future.result()
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                del self._leases[future.result().lease_id]
                self._tell(LeaseReleased(future.result().lease_id))
            else:
                self._tell(StepCancelled(need.request_id))
            raise
        finally:
            self._waiting.pop(need.request_id, None)

    def _progress(self, need: LeaseRequest) -> Progress:
        position, total = self._core.position(need.request_id)
        if not self._core.is_loading_for(need.request_id):
            return Progress("queued", position, total)
        loaded = max((self.load_progress(model) for model in need.models), default=0.0)
        return Progress("loading", int(100 * loaded), 100)

    # ── the core's task ─────────────────────────────────────────────────────────────────────────

    def _tell(self, event: Event) -> None:
        self._inbox.put_nowait((event, None))

    async def _tell_and_wait(self, event: Event) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._inbox.put_nowait((event, done))
        await done

    async def _own_core(self) -> None:
        while True:
            event, done = await self._inbox.get()
            for effect in self._core.handle(event, self._clock.monotonic()):
                self._perform(effect)
            if isinstance(event, InstanceGone):
                self._running.pop(event.instance_id, None)
            if done is not None and not done.done():
                done.set_result(None)
            await self._tidy()

    async def _tidy(self) -> None:
        """Whoever was answered goes on first; then, until the next event, what can wait."""
        while self._inbox.empty():
            await asyncio.sleep(0)
            if not (self._inbox.empty() and self._core.tidy()):
                break

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Grant():
                self._grant(effect)
            case Refuse():
                self._refuse(effect)
            case StartInstance():
                self._start(effect)
            case ReadAhead():
                self._begin_reading(effect.model)
            case ShareOut():
                assert self._group is not None
                self._group.create_task(self._share_out(effect))
            case StopInstance():
                if effect.instance_id in self._running:
                    self._running[effect.instance_id].end()
            case Preempt():
                if effect.lease_id in self._leases:
                    self._leases[effect.lease_id].preempted.set()
            case Record():
                if self._on_decision is not None:
                    self._on_decision(effect)
            case WakeAt():
                self._wake_at(effect.time_s)
            case _:
                assert_never(effect)

    def _grant(self, grant: Grant) -> None:
        future = self._waiting.get(grant.request_id)
        if future is None or future.done():
            self._tell(LeaseReleased(grant.lease_id))
            return
        engine = self._running[grant.instance_id].engine
        assert engine is not None, "only a ready instance is granted"
        self._idle.clear()
        self._leases[grant.lease_id] = Lease(
            grant.lease_id,
            engine,
            grant.model,
            grant.instance_id,
            queue_ms=round(grant.queue_s * 1000),
            load_ms=round(grant.load_s * 1000),
        )
        future.set_result(grant)

    def _refuse(self, refuse: Refuse) -> None:
        future = self._waiting.get(refuse.request_id)
        if future is not None and not future.done():
            future.set_exception(error_of(refuse))

    def _wake_at(self, time_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(time_s - self._clock.monotonic(), 0.0)
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._tell, Tick())

    def _begin_reading(self, model: str) -> None:
        if self._read_ahead is not None and model not in self._reading:
            assert self._group is not None
            task = self._group.create_task(self._read_ahead(model), name=f"read {model}")
            self._reading[model] = task
            task.add_done_callback(lambda _: self._reading.pop(model))

    # ── instances ───────────────────────────────────────────────────────────────────────────────

    async def _share_out(self, ask: ShareOut) -> None:
        """Without an answer every model wishes for all it may have: no reason to stop."""
        if self._parts is None:
            return
        try:
            parts = await asyncio.to_thread(self._parts, ask.models, ask.capacity)
        except Exception:  # the wall of a placement that only advises
            log.exception("the parts of %s", ", ".join(model.name for model in ask.models))
        else:
            self._tell(Shared(ask.number, parts))

    def _start(self, start: StartInstance) -> None:
        assert self._group is not None
        running = self._running[start.instance_id] = _Running(start.spec.name)
        running.task = self._group.create_task(self._run(start, running), name=start.instance_id)

    async def _run(self, start: StartInstance, running: _Running) -> None:
        """One instance from start to gone. The wall at which an engine's failure stops."""
        began_s = self._clock.monotonic()
        task = running.task
        assert task is not None
        running.entering = True
        try:
            if running.stop.is_set():
                raise EngineError("stopped before it was started")
            if self._memory is not None:
                await self._memory.foresee(start.spec, start.fit)
            engine = running.engine = await asyncio.to_thread(
                self._engines.create, start.spec.name, start.fit.placement
            )
            async with engine:
                running.entering, running.pid = False, engine.pid
                load_s = self._clock.monotonic() - began_s
                slots = min(engine.facts.slots, start.spec.slots)
                held = await self._measured(start, running.pid)
                self._tell(InstanceReady(start.instance_id, load_s, max(slots, 1), held))
                await self._until_stopped(start.instance_id, running.stop, engine)
        except asyncio.CancelledError:
            if not running.stop.is_set() or task.uncancel() > 0:
                raise  # not by `end`: the scheduler itself is being torn down
        except Exception as error:  # the wall of an instance
            self._tell(failure_of(start.instance_id, error))
        if running.pid is not None and self._memory is not None:
            await self._bytes_back(start, running.pid)
        self._tell(InstanceGone(start.instance_id))

    async def _measured(self, start: StartInstance, pid: int | None) -> Mapping[str, int] | None:
        """What the devices show of it right after its load."""
        if pid is None or self._memory is None:
            return None
        return await self._memory.measured(start.spec, start.fit, pid)

    async def _until_stopped(
        self, instance_id: str, stopping: asyncio.Event, engine: Engine
    ) -> None:
        async with asyncio.TaskGroup() as group:
            stop = group.create_task(stopping.wait())
            failed = group.create_task(engine.wait_failed())
            await asyncio.wait([stop, failed], return_when=asyncio.FIRST_COMPLETED)
            if failed.done() and not stop.done():
                self._tell(InstanceFailed(instance_id, failed.result()))
            stop.cancel()
            failed.cancel()

    async def _bytes_back(self, start: StartInstance, pid: int) -> None:
        assert self._memory is not None
        devices = tuple(start.fit.bytes_by_device)
        back = asyncio.ensure_future(self._memory.returned(pid, devices))
        try:
            done, _ = await asyncio.wait([back], timeout=STUCK_BYTES_S)
            if not done:
                numbers: Mapping[str, object] = {"pid": pid, "devices": list(devices)}
                self._perform(
                    Record(self._clock.monotonic(), "bytes_stuck", start.instance_id, numbers)
                )
                await back
        finally:
            back.cancel()


def _step(need: LeaseRequest) -> StepRequested:
    return StepRequested(
        need.request_id,
        need.agent,
        need.models,
        need.priority,
        need.deadline_s,
        need.weight,
        need.session,
        need.prompt_tokens,
        need.max_tokens,
        need.preemptible,
    )
