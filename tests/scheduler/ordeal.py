"""The core on virtual time against a hostile machine: does anything ever run out of memory?

Two cards, agents that ask at random, and everything that makes memory uncertain: estimates that are
off, another program that takes whatever is free until it has what it wants, a driver that shows the
past, workers that die in the middle of a load, bytes of the dead that come back late, models that
are taken out of the configuration or change their size.

Physics is kept apart from what the core is told. A card has `total` bytes; our allocations and the
other program's never add up to more: whoever asks for what is not there is refused. A load which
that ends is an out-of-memory. How a worker allocates decides what the core can promise:

- `Loading.UNCHECKED`: it allocates weights, cache and scratch one after the other as it loads.
- `Loading.CHECKED`: as llama.cpp's worker does (`engines/llamacpp/shortage.py`): it looks whether
  the promised bytes are free, waits for them a little, and declines if they do not come; it looks
  and waits again before the cache, and allocates the scratch right after that. If the scratch is
  refused, it gives back the cache, keeps the weights, and waits and tries once more while it is
  patient. So its load is ready or declined; how often it was refused is counted beside that.
- `Loading.CLAIMED`: it looks, and takes them all at once before it reads the first weight.

With the first two another program may take the bytes between a look and the next allocation; no
scheduler can prevent that, since nobody asks it. With the third the core's arithmetic is all that
is left: the margin on estimates, one load at a time, no byte counted free before it is.

The yardstick is an offline optimum: at each instant the most bytes of the configured models that
the cards can hold beside the other program's true use and the reserve, with true sizes, loads and
moves in no time, among all choices that hold the models which work or load at that instant. No
schedule that serves the same steps at the same moments holds more. A second yardstick is the same
core with `knows_all`: no error in estimates, no margin, no lag, no hysteresis; it tells what
uncertainty costs, apart from what the order of requests costs.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from heapq import heappop, heappush
from itertools import count

from appliance.scheduler.core import Core
from appliance.scheduler.placing import BestFit, WithMargin
from appliance.scheduler.policy import Policy
from appliance.scheduler.values import (
    AgentSpec,
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
    StartInstance,
    StepCancelled,
    StepRequested,
    StopInstance,
    Tick,
    WakeAt,
)
from appliance.types import Priority
from tests.scheduler.packing import Packing

GIB = 1 << 30
CARDS = {"gpu0": 24 * GIB, "gpu1": 16 * GIB}
RESERVE_BYTES = GIB // 2
SIZES_GIB = (1.5, 2.5, 4.0, 5.0, 6.5, 8.0, 10.0, 13.0)

_ESTIMATE_ERROR = 0.03
_FOREIGN_SHARE = 0.6
_LAG_S = 2.0
"""A reading shows the card as it was up to this long ago; a dead worker's bytes stay as long."""
_POLL_S = 1.0
_BYTES_PER_S = 2 * GIB
_OPERATION_S = 2.0
"""Mean seconds between operations."""


class Loading(StrEnum):
    UNCHECKED = "unchecked"
    CHECKED = "checked"
    CLAIMED = "claimed"


_PARTS: dict[Loading, tuple[tuple[float, float], ...]] = {
    Loading.UNCHECKED: ((0.0, 0.8), (0.9, 0.15), (1.0, 0.05)),
    Loading.CHECKED: ((0.0, 0.8),),
    Loading.CLAIMED: ((0.0, 1.0),),
}
"""When in the course of a load which share of its bytes is allocated: weights, cache, scratch. Of
a checked load this is the part before its second look, at `_SECOND_LOOK`."""
_SECOND_LOOK, _CACHE_SHARE = 0.98, 0.15

_PATIENCE_S, _LOOK_EVERY_S = 10.0, 0.25
"""How long a worker waits for bytes that are being given back, and how often it looks."""


@dataclass(slots=True)
class Survived:
    """Counts over one run; `*_byte_s` are integrals over time."""

    operations: int = 0
    loads: int = 0
    oom: int = 0
    """Loads that ended with a refused allocation."""
    refused_midway: int = 0
    """Refused allocations after which the worker waited, and was ready or declined."""
    over_physical: int = 0
    """Instants at which all bytes in use exceeded a card; any is a bug of this simulation."""
    over_reserved: int = 0
    """Events after which the ledger had promised more than a card's capacity."""
    declined: int = 0
    """Loads that looked, found too little for as long as they wait, and gave up in good order."""
    deaths: int = 0
    served: int = 0
    refused: int = 0
    resident_byte_s: float = 0.0
    optimum_byte_s: float = 0.0

    @property
    def residency_pct(self) -> float:
        return 100.0 * self.resident_byte_s / max(self.optimum_byte_s, 1.0)


@dataclass(slots=True, eq=False)
class _Worker:
    """A process of ours: what it will take in truth, and what it has."""

    instance_id: str
    spec: ModelSpec
    card: str
    promised_bytes: int
    real_bytes: int
    slots: int
    has_bytes: int = 0
    is_dead: bool = False
    is_ready: bool = False
    is_unlisted: bool = False
    """The driver lists no process any more: what it has looks like another program's."""
    leases: set[str] = field(default_factory=set)


def endure(
    seed: int, operations: int, loading: Loading = Loading.CLAIMED, *, knows_all: bool = False
) -> Survived:
    """Random operations by this seed; the same seed gives the same counts, and operations of the
    same kinds at the same times with either knowledge."""
    return _Ordeal(seed, loading, knows_all).run(operations)


class _Ordeal:
    """A heap of moments; each is a bound function that is called at its time."""

    def __init__(self, seed: int, loading: Loading, knows_all: bool) -> None:
        self._rng, self._operations = random.Random(seed), random.Random(~seed)
        self._loading = loading
        self._error, self._lag_s = (0.0, 0.0) if knows_all else (_ESTIMATE_ERROR, _LAG_S)
        self._core = Core(
            BestFit() if knows_all else WithMargin(BestFit()),
            Policy(foreign_calm_s=0.0) if knows_all else None,
        )
        self._now_s = self._wake_s = 0.0
        self._moments: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count(1)
        self._counts = Survived()
        self._workers: dict[str, _Worker] = {}
        self._foreign = dict.fromkeys(CARDS, 0)
        self._wanted = dict.fromkeys(CARDS, 0)
        self._seen: dict[str, list[tuple[float, int]]] = {card: [(0.0, 0)] for card in CARDS}
        self._leases: dict[str, _Worker] = {}
        self._waiting: dict[str, None] = {}
        self._epoch = dict.fromkeys((f"m{n}" for n in range(len(SIZES_GIB))), 0)
        self._specs = {
            name: self._spec(name, size) for name, size in zip(self._epoch, SIZES_GIB, strict=True)
        }
        self._true_bytes: dict[str, int] = {}
        self._packing = Packing({})
        self._packed: tuple[object, ...] = ()
        self._best_bytes, self._ours_bytes, self._counted_s = 0, 0, 0.0
        self._show()
        self._configure()

    def run(self, operations: int) -> Survived:
        self._in(_POLL_S, self._poll)
        self._in(0.0, self._operate)
        while self._counts.operations < operations:
            self._now_s, _, moment = heappop(self._moments)
            moment()
        return self._counts

    # ── operations ──────────────────────────────────────────────────────────────────────────────

    def _operate(self) -> None:
        self._counts.operations += 1
        self._in(self._operations.expovariate(1 / _OPERATION_S), self._operate)
        drawn = self._operations.random()
        if drawn < 0.80:
            self._request()
        elif drawn < 0.84:
            self._cancel()
        elif drawn < 0.90:
            self._foreign_turn()
        elif drawn < 0.94:
            self._die()
        elif drawn < 0.97:
            self._resize()
        else:
            self._remove_or_add()

    def _request(self) -> None:
        name = f"r{next(self._numbers)}"
        model = self._operations.choice(list(self._epoch))
        self._waiting[name] = None
        priority = self._operations.choice(
            (Priority.INTERACTIVE, Priority.NORMAL, Priority.BACKGROUND)
        )
        agent = f"a{self._operations.randrange(6)}"
        self._tell(StepRequested(name, agent, (model,), priority, preemptible=True))

    def _cancel(self) -> None:
        if self._waiting:
            name = self._operations.choice(list(self._waiting))
            del self._waiting[name]
            self._tell(StepCancelled(name))

    def _foreign_turn(self) -> None:
        """The other program wants another amount of one card: it frees at once, or takes what is
        free at this moment and tries again until it has what it wants."""
        card = self._operations.choice(list(CARDS))
        self._wanted[card] = int(self._operations.uniform(0, _FOREIGN_SHARE) * CARDS[card])
        self._foreign_grab(card, self._wanted[card])

    def _foreign_grab(self, card: str, wanted: int) -> None:
        if wanted != self._wanted[card]:
            return
        self._foreign[card] = min(wanted, self._foreign[card] + self._free(card))
        self._changed(card)
        if self._foreign[card] < wanted:
            self._in(self._operations.uniform(0.05, 1.0), lambda: self._foreign_grab(card, wanted))

    def _die(self) -> None:
        alive = [worker for worker in self._workers.values() if not worker.is_dead]
        if alive:
            self._counts.deaths += 1
            self._kill(
                self._operations.choice(alive), "killed", crashed=self._operations.random() < 0.5
            )

    def _resize(self) -> None:
        name = self._operations.choice(list(self._epoch))
        self._epoch[name] += 1
        spec = self._spec(name, self._operations.choice(SIZES_GIB))
        if name in self._specs:
            self._specs[name] = spec
            self._configure()

    def _remove_or_add(self) -> None:
        name = self._operations.choice(list(self._epoch))
        if name in self._specs:
            del self._specs[name]
        else:
            self._specs[name] = self._spec(name, self._operations.choice(SIZES_GIB))
        self._configure()

    def _spec(self, name: str, size_gib: float) -> ModelSpec:
        size = int(size_gib * GIB)
        return ModelSpec(name, slots=2, demand=size, load_s=size / _BYTES_PER_S,
                         fingerprint=f"{self._epoch[name]} {size}")  # fmt: skip

    def _configure(self) -> None:
        for name, spec in self._specs.items():
            assert isinstance(spec.demand, int)
            error = random.Random(f"{name} {spec.fingerprint}").uniform(-1, 1) * self._error
            self._true_bytes[name] = int(spec.demand * (1 + error))
        self._count_time()
        self._packing = Packing({name: self._true_bytes[name] for name in self._specs})
        agents = tuple(AgentSpec(f"of {name}", (name,)) for name in self._specs)
        self._tell(ConfigChanged(tuple(self._specs.values()), agents))

    # ── what the core wants done ────────────────────────────────────────────────────────────────

    def _tell(self, event: Event) -> None:
        effects = self._core.handle(event, self._now_s)
        for effect in effects:
            self._perform(effect)
        for device in self._core.capacity(self._now_s).devices:
            self._counts.over_reserved += device.reserved_bytes > device.capacity_bytes
        self._weigh()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case StartInstance():
                self._start(effect)
            case StopInstance():
                self._stop(effect.instance_id)
            case Grant():
                self._grant(effect)
            case Preempt():
                lease_id = effect.lease_id
                self._in(self._rng.uniform(0.0, 0.3), lambda: self._release(lease_id, 0.0))
            case WakeAt(time_s):
                self._wake_s = time_s
                self._in(time_s - self._now_s, lambda: self._tick(time_s))
            case _:
                self._waiting.pop(getattr(effect, "request_id", ""), None)

    def _tick(self, wished_s: float) -> None:
        if wished_s == self._wake_s:
            self._tell(Tick())

    def _grant(self, grant: Grant) -> None:
        worker = self._workers[grant.instance_id]
        assert not worker.is_dead, "nobody is granted a dead worker"
        del self._waiting[grant.request_id]
        self._counts.served += 1
        self._leases[grant.lease_id] = worker
        worker.leases.add(grant.lease_id)
        seconds = self._rng.uniform(0.5, 4.0)
        self._in(seconds, lambda: self._release(grant.lease_id, seconds))

    def _release(self, lease_id: str, seconds: float) -> None:
        worker = self._leases.pop(lease_id, None)
        if worker is not None:
            worker.leases.discard(lease_id)
            self._tell(LeaseReleased(lease_id, 10, seconds))

    # ── workers ─────────────────────────────────────────────────────────────────────────────────

    def _start(self, start: StartInstance) -> None:
        """The process starts now, and looks at the card half a second later."""
        ((card, promised),) = start.fit.bytes_by_device.items()
        worker = _Worker(start.instance_id, start.spec, card, promised,
                         self._true_bytes[start.spec.name], start.fit.slots)  # fmt: skip
        self._workers[start.instance_id] = worker
        self._counts.loads += 1
        look_s = self._rng.uniform(0.1, 1.0)
        self._in(look_s, lambda: self._look(worker, self._now_s + _PATIENCE_S))

    def _look(self, worker: _Worker, until_s: float) -> None:
        """Before the weights: waits until all that was promised is free."""
        if worker.is_dead:
            return
        if self._loading is Loading.UNCHECKED or self._free(worker.card) >= worker.promised_bytes:
            self._load(worker)
        elif self._now_s < until_s:
            self._in(_LOOK_EVERY_S, lambda: self._look(worker, until_s))
        else:
            self._decline(worker)

    def _load(self, worker: _Worker) -> None:
        load_s = worker.real_bytes / _BYTES_PER_S
        if self._loading is Loading.CHECKED:
            self._allocate(worker, int(worker.real_bytes * _PARTS[self._loading][0][1]))
            patient_s = self._now_s + _SECOND_LOOK * load_s + _PATIENCE_S
            look_s = _SECOND_LOOK * load_s
            self._in(look_s, lambda: self._look_again(worker, patient_s, load_s))
            return
        taken = 0
        for at, share in _PARTS[self._loading]:
            last = at == _PARTS[self._loading][-1][0]
            size = worker.real_bytes - taken if last else int(worker.real_bytes * share)
            taken += size
            self._in(at * load_s, partial(self._allocate, worker, size))
        self._in(load_s, lambda: self._ready(worker, load_s))

    def _look_again(self, worker: _Worker, until_s: float, load_s: float) -> None:
        """Before the cache: waits until what is left of the promise is free."""
        if worker.is_dead:
            return
        if self._free(worker.card) >= worker.promised_bytes - worker.has_bytes:
            cache = int(worker.real_bytes * _CACHE_SHARE)
            self._allocate(worker, cache)
            scratch = partial(self._allocate_scratch, worker, cache, until_s, load_s)
            self._in((1.0 - _SECOND_LOOK) * load_s, scratch)
        elif self._now_s < until_s:
            self._in(_LOOK_EVERY_S, lambda: self._look_again(worker, until_s, load_s))
        else:
            self._decline(worker)

    def _allocate_scratch(self, worker: _Worker, cache: int, until_s: float, load_s: float) -> None:
        if worker.is_dead:
            return
        size = worker.real_bytes - worker.has_bytes
        if size <= self._free(worker.card):
            self._allocate(worker, size)
            self._ready(worker, load_s)
        else:
            self._counts.refused_midway += 1
            worker.has_bytes -= cache
            self._changed(worker.card)
            self._look_again(worker, until_s, load_s)

    def _decline(self, worker: _Worker) -> None:
        self._counts.declined += 1
        self._kill(worker, "no room after all", crashed=False)

    def _allocate(self, worker: _Worker, size: int) -> None:
        if worker.is_dead:
            return
        if size > self._free(worker.card):
            self._counts.oom += 1
            self._kill(worker, "out of memory", crashed=False)
            return
        worker.has_bytes += size
        self._changed(worker.card)

    def _ready(self, worker: _Worker, load_s: float) -> None:
        if not worker.is_dead:
            worker.is_ready = True
            real = {worker.card: worker.real_bytes}
            self._tell(InstanceReady(worker.instance_id, load_s, worker.slots, real))

    def _kill(self, worker: _Worker, reason: str, *, crashed: bool) -> None:
        for lease_id in worker.leases:
            del self._leases[lease_id]
        worker.leases.clear()
        worker.is_dead = True
        worker.is_unlisted = True
        self._changed(worker.card)
        self._tell(InstanceFailed(worker.instance_id, reason, crashed=crashed))
        self._in(self._rng.uniform(0.0, self._lag_s), lambda: self._bytes_back(worker))

    def _stop(self, instance_id: str) -> None:
        worker = self._workers[instance_id]
        assert not worker.leases, "what works is never stopped"
        if not worker.is_dead:
            worker.is_dead = True
            self._in(self._rng.uniform(0.0, self._lag_s), lambda: self._bytes_back(worker))

    def _bytes_back(self, worker: _Worker) -> None:
        """They are free now; the driver shows it later, and only then is the core told."""
        worker.has_bytes = 0
        self._changed(worker.card)
        self._in(self._rng.uniform(0.0, self._lag_s), lambda: self._gone(worker))

    def _gone(self, worker: _Worker) -> None:
        del self._workers[worker.instance_id]
        self._tell(InstanceGone(worker.instance_id))

    # ── the cards ───────────────────────────────────────────────────────────────────────────────

    def _used(self, card: str) -> int:
        ours = sum(worker.has_bytes for worker in self._workers.values() if worker.card == card)
        return ours + self._foreign[card]

    def _free(self, card: str) -> int:
        return CARDS[card] - self._used(card)

    def _rooms(self) -> list[int]:
        return [size - RESERVE_BYTES - self._foreign[card] for card, size in CARDS.items()]

    def _changed(self, card: str) -> None:
        """Bytes moved: keep the picture that a late reading will show, and count."""
        self._counts.over_physical += self._used(card) > CARDS[card]
        workers = self._workers.values()
        shown = self._foreign[card] + sum(
            worker.has_bytes for worker in workers if worker.card == card and worker.is_unlisted
        )
        if self._seen[card][-1][1] != shown:
            self._seen[card].append((self._now_s, shown))
        self._weigh()

    def _weigh(self) -> None:
        """What is resident from now on, and what could be at best."""
        self._count_time()
        alive = [worker for worker in self._workers.values() if not worker.is_dead]
        self._ours_bytes = sum(worker.has_bytes for worker in alive)
        busy = frozenset(
            worker.spec.name for worker in alive if worker.leases or not worker.is_ready
        )
        packed = (self._packing, busy, self._rooms())
        if packed != self._packed:
            self._packed = packed
            self._best_bytes = self._packing.most(busy, self._rooms())

    def _count_time(self) -> None:
        passed_s = self._now_s - self._counted_s
        self._counts.resident_byte_s += passed_s * self._ours_bytes
        self._counts.optimum_byte_s += passed_s * self._best_bytes
        self._counted_s = self._now_s

    def _poll(self) -> None:
        self._show()
        self._in(_POLL_S, self._poll)

    def _show(self) -> None:
        """A reading of each card as it was a moment ago."""
        views = []
        for card, total in CARDS.items():
            at_s = self._now_s - self._rng.uniform(0.0, self._lag_s)
            history = self._seen[card]
            index = max(bisect_right(history, (at_s, 1 << 62)) - 1, 0)
            views.append(DeviceView(card, total - RESERVE_BYTES, history[index][1]))
            if index > 64:
                del history[: index - 1]
        self._tell(InventoryChanged(tuple(views)))

    def _in(self, delay_s: float, moment: Callable[[], None]) -> None:
        heappush(self._moments, (self._now_s + max(delay_s, 0.0), next(self._numbers), moment))
