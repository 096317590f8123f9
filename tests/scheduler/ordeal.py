"""The core on virtual time against a hostile machine: does anything ever run out of memory?

Two cards, agents that ask at random, and everything that makes memory uncertain: estimates that are
off, another program that takes whatever is free until it has what it wants, a driver that shows the
past, workers that die in the middle of a load, bytes of the dead that come back late, models that
are taken out of the configuration or change their size. The physics is in `machine`, kept apart
from what the core is told. What could have been held at best is in `optimum` (by a schedule that
knows the future) and in `packing` (at each instant by itself); whether anybody got anywhere, in
`watch`.

Another yardstick is the same core with `knows_all`: no error in estimates, no margin, no lag, no
hysteresis; it tells what uncertainty costs, apart from what the order of requests costs.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from appliance.gpu.footprint import MEASURED_MARGIN
from appliance.scheduler.core import Core
from appliance.scheduler.placing import BestFit
from appliance.scheduler.policy import Policy
from appliance.scheduler.values import (
    AgentSpec,
    ConfigChanged,
    Effect,
    Event,
    Fit,
    Grant,
    InstanceReady,
    InventoryChanged,
    LeaseReleased,
    Misfit,
    ModelSpec,
    Preempt,
    StartInstance,
    StepCancelled,
    StepRequested,
    StopInstance,
    Tick,
    WakeAt,
)
from appliance.types import Priority
from tests.scheduler.machine import (
    BYTES_PER_S,
    CARDS,
    GIB,
    LAG_S,
    RESERVE_BYTES,
    Clock,
    Loading,
    Machine,
    Mishaps,
    Worker,
)
from tests.scheduler.margin import WithMargin
from tests.scheduler.optimum import Course, Held
from tests.scheduler.packing import Packing
from tests.scheduler.watch import Signs, Watch

SIZES_GIB = (1.5, 2.5, 4.0, 5.0, 6.5, 8.0, 10.0, 13.0)

_ESTIMATE_ERROR = 0.03
_LOAD_ERROR = 0.005
"""One load of a model may take so much less than the next: of what its true size is the most."""
_FOREIGN_SHARE = 0.6
_POLL_S = 1.0
_OPERATION_S = 2.0
"""Mean seconds between operations."""


@dataclass
class Survived(Mishaps, Signs):
    """Counts over one run; `*_byte_s` are integrals over time."""

    operations: int = 0
    loads: int = 0
    over_reserved: int = 0
    """Events after which the ledger had promised more than a card's capacity."""
    deaths: int = 0
    resident_byte_s: float = 0.0
    instants_byte_s: float = 0.0
    """What could be held at best at each instant by itself (`packing`)."""
    course: Course = field(default_factory=Course, compare=False)


def endure(
    seed: int, operations: int, loading: Loading = Loading.CLAIMED, *, knows_all: bool = False
) -> Survived:
    """Random operations by this seed; the same seed gives the same counts, and the same
    operations at the same times whatever the core does and knows."""
    return _Ordeal(seed, loading, knows_all).run(operations)


@dataclass(frozen=True, slots=True)
class _Step:
    """It waits."""

    model: str
    since_s: float
    work_s: float


class _Calibrated:
    """Promises as the daemon does (`gpu.calibration`): what a model was seen to take at most with
    one per cent on top, once it was loaded; before, its estimate with the margin of estimates."""

    def __init__(self) -> None:
        self._most_bytes: dict[tuple[str, str], int] = {}
        self._seen: dict[tuple[str, str], ModelSpec] = {}
        self._estimated = WithMargin(BestFit())
        self._measured = WithMargin(BestFit(), MEASURED_MARGIN / 1000)

    def learn(self, spec: ModelSpec, seen_bytes: int) -> None:
        key = spec.name, spec.fingerprint
        self._most_bytes[key] = max(seen_bytes, self._most_bytes.get(key, 0))
        self._seen[key] = replace(spec, demand=self._most_bytes[key])

    def place(self, spec: ModelSpec, free: Mapping[str, int], least: float = 0.0) -> Fit | Misfit:
        placer, known = self._known(spec)
        return placer.place(known, free, least)

    def fits(self, spec: ModelSpec, free: Mapping[str, int], least: float = 0.0) -> bool:
        placer, known = self._known(spec)
        return placer.fits(known, free, least)

    def _known(self, spec: ModelSpec) -> tuple[WithMargin, ModelSpec]:
        seen = self._seen.get((spec.name, spec.fingerprint))
        return (self._estimated, spec) if seen is None else (self._measured, seen)


class _Ordeal:
    """Operations, and what the core wants done about them."""

    def __init__(self, seed: int, loading: Loading, knows_all: bool) -> None:
        self._seed, self._rng = seed, random.Random(seed)
        self._clock, self._counts = Clock(), Survived()
        self._error = 0.0 if knows_all else _ESTIMATE_ERROR
        self._load_error = 0.0 if knows_all else _LOAD_ERROR
        self._machine = Machine(
            self._clock,
            self._rng,
            loading,
            0.0 if knows_all else LAG_S,
            self._counts,
            self._tell,
            self._weigh,
        )
        self._placer = _Calibrated()
        self._core = Core(
            BestFit() if knows_all else self._placer,
            Policy(foreign_calm_s=0.0) if knows_all else None,
        )
        self._wake_s = 0.0
        self._course = self._counts.course
        self._leases: dict[str, tuple[Worker, float]] = {}
        self._waiting: dict[str, _Step] = {}
        self._watch = Watch(self._counts)
        self._epoch = dict.fromkeys((f"m{n}" for n in range(len(SIZES_GIB))), 0)
        self._specs = {
            name: self._spec(name, size) for name, size in zip(self._epoch, SIZES_GIB, strict=True)
        }
        self._packing = Packing({})
        self._packed: tuple[object, ...] = ()
        self._best_bytes, self._ours_bytes, self._counted_s = 0, 0, 0.0
        self._tell(InventoryChanged(self._machine.readings()))
        self._configure()

    def run(self, operations: int) -> Survived:
        self._clock.after(_POLL_S, self._poll)
        self._clock.after(0.0, self._operate)
        while self._counts.operations < operations:
            self._clock.step()
        self._course.end_s = self._clock.now_s
        for worker in self._machine.alive():
            for lease_id in worker.leases:
                self._note(lease_id)
        return self._counts

    # ── operations ──────────────────────────────────────────────────────────────────────────────

    def _operate(self) -> None:
        """Draws all it may need from the number of the operation alone: what the core did before
        changes neither when nor what is asked next, so two cores can be compared."""
        self._counts.operations += 1
        drawn = random.Random(f"{self._seed} {self._counts.operations}")
        self._clock.after(drawn.expovariate(1 / _OPERATION_S), self._operate)
        kind = drawn.random()
        card, model = drawn.choice(list(CARDS)), drawn.choice(list(self._epoch))
        if kind < 0.80:
            self._request(model, drawn)
        elif kind < 0.84:
            self._cancel(drawn)
        elif kind < 0.90:
            self._machine.wants(card, int(drawn.uniform(0, _FOREIGN_SHARE) * CARDS[card]))
        elif kind < 0.94:
            self._die(drawn)
        elif kind < 0.97:
            self._resize(model, drawn.choice(SIZES_GIB))
        else:
            self._remove_or_add(model, drawn.choice(SIZES_GIB))

    def _request(self, model: str, drawn: random.Random) -> None:
        name = f"r{self._counts.operations}"
        priority = drawn.choice((Priority.INTERACTIVE, Priority.NORMAL, Priority.BACKGROUND))
        agent = f"a{drawn.randrange(6)}"
        self._waiting[name] = _Step(model, self._clock.now_s, drawn.uniform(0.5, 4.0))
        self._tell(StepRequested(name, agent, (model,), priority, preemptible=True))

    def _cancel(self, drawn: random.Random) -> None:
        if self._waiting:
            name = drawn.choice(list(self._waiting))
            del self._waiting[name]
            self._tell(StepCancelled(name))

    def _die(self, drawn: random.Random) -> None:
        alive = self._machine.alive()
        if alive:
            self._counts.deaths += 1
            worker = drawn.choice(alive)
            if worker.spec == self._specs.get(worker.spec.name):
                self._course.deaths.append((self._clock.now_s, worker.spec.name))
            for lease_id in worker.leases:
                self._note(lease_id)
            self._machine.kill(worker, "killed", crashed=drawn.random() < 0.5)

    def _resize(self, name: str, size_gib: float) -> None:
        self._epoch[name] += 1
        if name in self._specs:
            self._specs[name] = self._spec(name, size_gib)
            self._configure()

    def _remove_or_add(self, name: str, size_gib: float) -> None:
        if name in self._specs:
            del self._specs[name]
        else:
            self._specs[name] = self._spec(name, size_gib)
        self._configure()

    def _spec(self, name: str, size_gib: float) -> ModelSpec:
        size = int(size_gib * GIB)
        return ModelSpec(name, slots=2, demand=size, load_s=size / BYTES_PER_S,
                         fingerprint=f"{self._epoch[name]} {size}")  # fmt: skip

    def _true_bytes(self, spec: ModelSpec) -> int:
        """The most that a load of it takes."""
        assert isinstance(spec.demand, int)
        error = random.Random(f"{spec.name} {spec.fingerprint}").uniform(-1, 1) * self._error
        return int(spec.demand * (1 + error))

    def _configure(self) -> None:
        self._count_time()
        sizes = {name: self._true_bytes(spec) for name, spec in self._specs.items()}
        self._packing = Packing(sizes)
        configured = {name: (spec.fingerprint, sizes[name]) for name, spec in self._specs.items()}
        self._course.models.append((self._clock.now_s, configured))
        agents = tuple(AgentSpec(f"of {name}", (name,)) for name in self._specs)
        self._tell(ConfigChanged(tuple(self._specs.values()), agents))

    def _poll(self) -> None:
        self._tell(InventoryChanged(self._machine.readings()))
        self._watch.starving(self._would_fit(), self._clock.now_s)
        self._clock.after(_POLL_S, self._poll)

    def _would_fit(self) -> set[str]:
        """Models that are waited for, have no worker, and would fit on a card as it is."""
        has_worker = {worker.spec.name for worker in self._machine.alive()}
        free = max(self._machine.free(card) - RESERVE_BYTES for card in CARDS)
        waited_for = {step.model for step in self._waiting.values()}
        return {
            name
            for name in waited_for - has_worker
            if name in self._specs
            and self._true_bytes(self._specs[name]) * (1 + 2 * self._error) <= free
        }

    # ── what the core wants done ────────────────────────────────────────────────────────────────

    def _tell(self, event: Event) -> None:
        if isinstance(event, InstanceReady):
            worker = self._machine.workers[event.instance_id]
            self._placer.learn(worker.spec, worker.real_bytes)
        now_s = self._clock.now_s
        has_more = isinstance(event, InstanceReady)
        for effect in self._core.handle(event, now_s):
            self._perform(effect)
            has_more |= isinstance(effect, StartInstance)
        if has_more:  # nothing else reserves, and cards keep their capacity
            for device in self._core.devices(now_s):
                self._counts.over_reserved += device.reserved_bytes > device.capacity_bytes
        self._weigh()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case StartInstance():
                self._counts.loads += 1
                self._watch.started(effect.spec.name, effect.instance_id, self._clock.now_s)
                most_bytes = self._true_bytes(effect.spec)
                less = self._rng.uniform(0.0, self._load_error)
                self._machine.start(effect, int(most_bytes * (1 - less)))
            case StopInstance():
                self._watch.stopped(effect.instance_id)
                self._machine.stop(effect.instance_id)
            case Grant():
                self._grant(effect)
            case Preempt():
                lease_id = effect.lease_id
                delay_s = self._rng.uniform(0.0, 0.3)
                self._clock.after(delay_s, lambda: self._release(lease_id, 0.0))
            case WakeAt(time_s):
                self._wake_s = time_s
                self._clock.after(time_s - self._clock.now_s, lambda: self._tick(time_s))
            case _:
                self._waiting.pop(getattr(effect, "request_id", ""), None)

    def _tick(self, wished_s: float) -> None:
        if wished_s == self._wake_s:
            self._tell(Tick())

    def _grant(self, grant: Grant) -> None:
        worker = self._machine.workers[grant.instance_id]
        assert not worker.is_dead, "nobody is granted a dead worker"
        step = self._waiting.pop(grant.request_id)
        self._watch.served(grant.instance_id, self._clock.now_s - step.since_s)
        self._leases[grant.lease_id] = worker, self._clock.now_s
        worker.leases.add(grant.lease_id)
        self._clock.after(step.work_s, lambda: self._release(grant.lease_id, step.work_s))

    def _release(self, lease_id: str, seconds: float) -> None:
        if lease_id in self._leases:
            worker, _ = self._leases[lease_id]
            if lease_id in worker.leases:
                self._note(lease_id)
                worker.leases.remove(lease_id)
                self._tell(LeaseReleased(lease_id, 10, seconds))
            del self._leases[lease_id]

    # ── counting ────────────────────────────────────────────────────────────────────────────────

    def _weigh(self) -> None:
        """What is resident from now on, and what could be at best."""
        self._count_time()
        alive = self._machine.alive()
        self._ours_bytes = sum(worker.has_bytes for worker in alive)
        busy = frozenset(
            worker.spec.name for worker in alive if worker.leases or not worker.is_ready
        )
        rooms = tuple(
            size - RESERVE_BYTES - self._machine.foreign[card] for card, size in CARDS.items()
        )
        packed = (self._packing, busy, rooms)
        if packed != self._packed:
            self._packed = packed
            self._course.rooms.append((self._clock.now_s, rooms))
            self._best_bytes = self._packing.most(busy, rooms)

    def _note(self, lease_id: str) -> None:
        """A step ends: its worker had to be there since the beginning of its load."""
        worker, granted_s = self._leases[lease_id]
        self._course.held.append(
            Held(worker.spec.name, worker.spec.fingerprint, list(CARDS).index(worker.card),
                 self._true_bytes(worker.spec), granted_s - worker.load_s, self._clock.now_s)
        )  # fmt: skip

    def _count_time(self) -> None:
        passed_s = self._clock.now_s - self._counted_s
        self._counts.resident_byte_s += passed_s * self._ours_bytes
        self._counts.instants_byte_s += passed_s * self._best_bytes
        self._counted_s = self._clock.now_s
