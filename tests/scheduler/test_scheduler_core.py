"""The core under random operations: the invariants of DESIGN.md section 4 after every event."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.scheduler.core import Core
from appliance.scheduler.placing import BestFit
from appliance.scheduler.policy import Policy
from appliance.scheduler.replay import TraceRow, lru_loads, optimum_loads, replay
from appliance.scheduler.values import (
    ConfigChanged,
    DeviceView,
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
    StartInstance,
    StepCancelled,
    StepRequested,
    StopInstance,
    Tick,
)
from appliance.types import Priority

MODELS = [ModelSpec(f"m{n}", slots=1 + n % 3, demand=20 + 10 * n, load_s=5.0) for n in range(6)]
CAPACITY = {"gpu0": 100, "gpu1": 70}


class World:
    """Carries out what the core wants, late and in any order, and checks what it wants."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.now_s = rng, 0.0
        self.core = Core(BestFit(), Policy(foreign_calm_s=3.0))
        self.promised: dict[str, dict[str, int]] = {}
        self.taken: dict[str, int] = dict.fromkeys(CAPACITY, 0)
        self.starting: list[StartInstance] = []
        self.up: set[str] = set()
        self.stopping: list[str] = []
        self.leases: dict[str, str] = {}
        self.waiting: set[str] = set()
        self.effects: list[Effect] = []
        self.number = 0
        self.inventory()
        self.send(ConfigChanged(tuple(MODELS)))

    def send(self, event: Event) -> None:
        for effect in self.core.handle(event, self.now_s):
            self.effects.append(effect)
            self.check(effect)
        for device, capacity in CAPACITY.items():
            held = sum(bytes_.get(device, 0) for bytes_ in self.promised.values())
            assert held <= capacity, "promised bytes never exceed the device"

    def check(self, effect: Effect) -> None:
        match effect:
            case Grant():
                assert effect.request_id in self.waiting, "one answer to each request"
                assert effect.instance_id in self.up, "a lease is on a ready instance"
                assert effect.instance_id not in self.stopping
                self.waiting.remove(effect.request_id)
                self.leases[effect.lease_id] = effect.instance_id
            case Refuse():
                assert effect.request_id in self.waiting, "one answer to each request"
                self.waiting.remove(effect.request_id)
            case StartInstance():
                for device, amount in effect.fit.bytes_by_device.items():
                    held = sum(bytes_.get(device, 0) for bytes_ in self.promised.values())
                    free = CAPACITY[device] - held - self.taken[device]
                    assert amount <= free, "a load starts only into bytes that are really free"
                self.promised[effect.instance_id] = dict(effect.fit.bytes_by_device)
                self.starting.append(effect)
            case StopInstance():
                assert effect.instance_id not in self.leases.values(), "no lease is evicted"
                self.stopping.append(effect.instance_id)
                self.starting = [s for s in self.starting if s.instance_id != effect.instance_id]
            case Preempt():
                assert effect.lease_id in self.leases
            case _:
                pass

    def inventory(self) -> None:
        views = [DeviceView(d, c, self.taken[d]) for d, c in CAPACITY.items()]
        self.send(InventoryChanged(tuple(views)))

    def request(self) -> None:
        self.number += 1
        name = f"r{self.number}"
        self.waiting.add(name)
        priority = self.rng.choice(list(Priority))
        deadline_s = self.now_s + 30 if self.rng.random() < 0.1 else None
        model = self.rng.choice(MODELS).name
        agent = f"a{self.rng.randrange(4)}"
        self.send(StepRequested(name, agent, (model,), priority, deadline_s, preemptible=True))

    def finish_load(self) -> None:
        if self.starting:
            start = self.starting.pop(self.rng.randrange(len(self.starting)))
            self.up.add(start.instance_id)
            self.send(InstanceReady(start.instance_id, 5.0, start.fit.slots))

    def finish_stop(self) -> None:
        if self.stopping:
            gone = self.stopping.pop(self.rng.randrange(len(self.stopping)))
            self.up.discard(gone)
            del self.promised[gone]
            self.send(InstanceGone(gone))

    def release(self) -> None:
        if self.leases:
            lease = self.rng.choice(sorted(self.leases))
            del self.leases[lease]
            self.send(LeaseReleased(lease, 10, 1.0))

    def cancel(self) -> None:
        if self.waiting:
            name = self.rng.choice(sorted(self.waiting))
            self.waiting.remove(name)
            self.send(StepCancelled(name))

    def crash(self) -> None:
        alive = sorted(self.up - set(self.stopping))
        if alive:
            dead = self.rng.choice(alive)
            self.leases = {lease: i for lease, i in self.leases.items() if i != dead}
            self.stopping.append(dead)
            self.send(InstanceFailed(dead, "killed"))

    def foreign(self) -> None:
        """Another program takes what is really free, or gives back."""
        device = self.rng.choice(sorted(CAPACITY))
        held = sum(bytes_.get(device, 0) for bytes_ in self.promised.values())
        most = min(int(CAPACITY[device] * 0.6), CAPACITY[device] - held)
        self.taken[device] = self.rng.randint(0, max(most, 0))
        self.inventory()

    def step(self) -> None:
        self.now_s += self.rng.choice([0.0, 0.1, 1.0, 5.0])
        choices = (
            [self.request] * 6
            + [self.release] * 6
            + [self.finish_load] * 4
            + [self.finish_stop] * 4
            + [self.cancel, self.foreign, self.crash]
        )
        self.rng.choice(choices)()

    def settle(self) -> None:
        """Nothing new arrives and everything ends: all who wait are answered."""
        self.taken = dict.fromkeys(CAPACITY, 0)
        self.inventory()
        for _ in range(3000):
            if not (self.waiting or self.leases):
                return
            self.now_s += 1.0
            self.finish_load()
            self.finish_stop()
            self.release()
            self.send(Tick())
        raise AssertionError(f"{len(self.waiting)} still wait")


@given(st.integers(0, 2**32))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_invariant_breaks_under_random_operations_and_everybody_is_answered(seed: int) -> None:
    world = World(random.Random(seed))
    for _ in range(200):
        world.step()
    world.settle()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_no_invariant_breaks_in_ten_thousand_random_operations(seed: int) -> None:
    world = World(random.Random(seed))
    for _ in range(10_000):
        world.step()
    world.settle()


def test_the_same_events_give_the_same_effects_byte_for_byte() -> None:
    def effects() -> str:
        world = World(random.Random(7))
        for _ in range(500):
            world.step()
        return repr(world.effects)

    assert effects() == effects()


def test_background_step_is_preempted_when_interactive_waits() -> None:
    core = Core(BestFit())
    core.handle(InventoryChanged((DeviceView("gpu0", 100),)), 0.0)
    core.handle(ConfigChanged((ModelSpec("m", 1, demand=50),)), 0.0)
    step = StepRequested("batch", "x", ("m",), Priority.BACKGROUND, preemptible=True)
    start = next(e for e in core.handle(step, 0.0) if isinstance(e, StartInstance))
    core.handle(InstanceReady(start.instance_id, 1.0, 1), 1.0)
    effects = core.handle(StepRequested("person", "y", ("m",), Priority.INTERACTIVE), 2.0)
    preempt = next(effect for effect in effects if isinstance(effect, Preempt))
    effects = core.handle(LeaseReleased(preempt.lease_id), 2.1)
    assert [e.request_id for e in effects if isinstance(e, Grant)] == ["person"]


def trace(seed: int, rows: int = 600) -> list[TraceRow]:
    rng = random.Random(seed)
    at_s, found = 0.0, []
    for _ in range(rows):
        at_s += rng.expovariate(0.5)
        agent = rng.randrange(5)
        model = f"m{(agent * 2 + rng.randrange(3)) % 9}"
        found.append(TraceRow(at_s, f"a{agent}", model, 3.0))
    return found


@given(st.integers(0, 2**32), st.integers(1, 5))
@settings(max_examples=10, deadline=None)
def test_nobody_is_overtaken_more_than_the_bound(seed: int, slots: int) -> None:
    result = replay(trace(seed, 300), slots, window=16)
    assert max(result.overtaken) <= Policy().max_overtaken


def test_a_window_of_sixteen_halves_the_loads_of_lru() -> None:
    rows = trace(1)
    models = [row.model for row in rows]
    assert 2 * replay(rows, 4, window=16).loads <= lru_loads(models, 4)


def test_arrival_order_is_kept_without_a_window_and_belady_is_never_beaten() -> None:
    rows = trace(2)
    models = [row.model for row in rows]
    result = replay(rows, 3)
    assert max(result.overtaken) == 0
    assert optimum_loads(models, 3) <= result.loads <= lru_loads(models, 3)


def test_every_eviction_tells_the_numbers_that_decided_it() -> None:
    result = replay(trace(3, 100), 2, keep_effects=True)
    evictions = [e for e in result.effects if isinstance(e, Record) and e.kind == "evict"]
    assert evictions
    assert {"for_model", "next_use_s", "reload_s", "density"} <= evictions[0].numbers.keys()


def test_what_waits_for_a_busy_models_place_is_read_meanwhile_and_told_once() -> None:
    core = Core(BestFit())
    core.handle(InventoryChanged((DeviceView("gpu0", 100),)), 0.0)
    core.handle(ConfigChanged((ModelSpec("m", 2, demand=60), ModelSpec("n", demand=60))), 0.0)
    start = next(
        e
        for e in core.handle(StepRequested("r1", "x", ("m",)), 0.0)
        if isinstance(e, StartInstance)
    )
    core.handle(InstanceReady(start.instance_id, 1.0, 2), 1.0)
    ahead = [e for e in core.handle(StepRequested("r2", "y", ("n",)), 2.0) if is_read_ahead(e)]
    assert ahead == [ReadAhead("n")]
    later = core.handle(StepRequested("r3", "x", ("m",)), 3.0) + core.handle(Tick(), 4.0)
    assert not [e for e in later if is_read_ahead(e)]


def is_read_ahead(effect: Effect) -> bool:
    return isinstance(effect, ReadAhead)


def decided(seed: int, asks: bool) -> list[Effect]:
    """All effects of a busy hour on two devices; `asks`: somebody looks between the events, and
    what can wait is done there."""
    rng, now_s, number = random.Random(seed), 0.0, 0
    core, effects = Core(BestFit()), list[Effect]()
    leases: list[str] = []
    todo: list[Event] = [
        ConfigChanged(tuple(MODELS)),
        InventoryChanged(tuple(DeviceView(name, size) for name, size in CAPACITY.items())),
    ]
    while number < 400:
        now_s += 0.1
        if not todo and leases and rng.random() < 0.5:
            todo.append(LeaseReleased(leases.pop(rng.randrange(len(leases))), 20, 1.0))
        elif not todo:
            number += 1
            models = (f"m{rng.randrange(6)}", f"m{rng.randrange(6)}")
            todo.append(StepRequested(f"r{number}", f"a{number % 5}", models))
        done = core.handle(todo.pop(), now_s)
        effects += done
        leases += [effect.lease_id for effect in done if isinstance(effect, Grant)]
        todo += [InstanceReady(e.instance_id, 5.0, 2) for e in done if isinstance(e, StartInstance)]
        todo += [InstanceGone(e.instance_id) for e in done if isinstance(e, StopInstance)]
        if asks:
            core.capacity(now_s)
            core.tidy()
    return effects


def test_neither_looking_nor_tidying_changes_a_decision() -> None:
    for seed in range(3):
        done = decided(seed, asks=False)
        assert sum(isinstance(effect, StopInstance) for effect in done) > 20
        assert done == decided(seed, asks=True)
