"""A hostile machine on virtual time: two cards, workers of ours, another program, a late driver.

A card has `total` bytes; our allocations and the other program's never add up to more: whoever asks
for what is not there is refused. A load which that ends is an out-of-memory. How a worker allocates
decides what the core can promise:

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
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from heapq import heappop, heappush
from itertools import count
from random import Random

from appliance.scheduler.values import (
    DeviceView,
    Event,
    InstanceFailed,
    InstanceGone,
    InstanceReady,
    ModelSpec,
    StartInstance,
)

GIB = 1 << 30
CARDS = {"gpu0": 24 * GIB, "gpu1": 16 * GIB}
RESERVE_BYTES = GIB // 2

LAG_S = 2.0
"""A reading shows the card as it was up to this long ago; a dead worker's bytes stay as long."""
BYTES_PER_S = 2 * GIB

MOST_AT_ONCE = 1_000
"""Moments at one instant; more, and things happen in a circle."""


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


class Clock:
    """A heap of moments; each is called at its time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._moments: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count(1)
        self._at_once = 0

    def after(self, delay_s: float, moment: Callable[[], None]) -> None:
        heappush(self._moments, (self.now_s + max(delay_s, 0.0), next(self._numbers), moment))

    def step(self) -> None:
        before_s = self.now_s
        self.now_s, _, moment = heappop(self._moments)
        self._at_once = self._at_once + 1 if self.now_s == before_s else 0
        assert self._at_once < MOST_AT_ONCE, f"time stands still at {self.now_s:.3f} s"
        moment()


@dataclass(slots=True, eq=False)
class Worker:
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

    @property
    def load_s(self) -> float:
        return self.real_bytes / BYTES_PER_S


@dataclass
class Mishaps:
    """What went wrong on the machine, counted."""

    oom: int = 0
    """Loads that ended with a refused allocation."""
    refused_midway: int = 0
    """Refused allocations after which the worker waited, and was ready or declined."""
    over_physical: int = 0
    """Instants at which all bytes in use exceeded a card; any is a bug of this simulation."""
    declined: int = 0
    """Loads that looked, found too little for as long as they wait, and gave up in good order."""


class Machine:
    """The physics. `tell` hears what a daemon would; `moved` is called when bytes have moved."""

    def __init__(
        self,
        clock: Clock,
        rng: Random,
        loading: Loading,
        lag_s: float,
        mishaps: Mishaps,
        tell: Callable[[Event], None],
        moved: Callable[[], None],
    ) -> None:
        self._clock, self._rng, self._loading, self._lag_s = clock, rng, loading, lag_s
        self._mishaps, self._tell, self._moved = mishaps, tell, moved
        self.workers: dict[str, Worker] = {}
        self.foreign = dict.fromkeys(CARDS, 0)
        self._wanted = dict.fromkeys(CARDS, 0)
        self._seen: dict[str, list[tuple[float, int]]] = {card: [(0.0, 0)] for card in CARDS}

    def alive(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if not worker.is_dead]

    def used(self, card: str) -> int:
        ours = sum(worker.has_bytes for worker in self.workers.values() if worker.card == card)
        return ours + self.foreign[card]

    def free(self, card: str) -> int:
        return CARDS[card] - self.used(card)

    def readings(self) -> tuple[DeviceView, ...]:
        """Each card as it was a moment ago."""
        views = []
        for card, total in CARDS.items():
            at_s = self._clock.now_s - self._rng.uniform(0.0, self._lag_s)
            history = self._seen[card]
            index = max(bisect_right(history, (at_s, 1 << 62)) - 1, 0)
            views.append(DeviceView(card, total - RESERVE_BYTES, history[index][1]))
            if index > 64:
                del history[: index - 1]
        return tuple(views)

    # ── the other program ───────────────────────────────────────────────────────────────────────

    def wants(self, card: str, wanted: int) -> None:
        """The other program wants this much of the card: it frees at once, or takes what is free at
        this moment and tries again and again until it has what it wants."""
        self._wanted[card] = wanted
        self._grab(card, wanted)

    def _grab(self, card: str, wanted: int) -> None:
        if wanted != self._wanted[card]:
            return
        self.foreign[card] = min(wanted, self.foreign[card] + self.free(card))
        self._changed(card)
        if self.foreign[card] < wanted:
            self._clock.after(self._rng.uniform(0.05, 1.0), lambda: self._grab(card, wanted))

    # ── workers ─────────────────────────────────────────────────────────────────────────────────

    def start(self, start: StartInstance, real_bytes: int) -> None:
        """The process starts now, and looks at the card half a second later."""
        ((card, promised),) = start.fit.bytes_by_device.items()
        worker = Worker(start.instance_id, start.spec, card, promised, real_bytes, start.fit.slots)
        self.workers[start.instance_id] = worker
        look_s = self._rng.uniform(0.1, 1.0)
        self._clock.after(look_s, lambda: self._look(worker, self._clock.now_s + _PATIENCE_S))

    def stop(self, instance_id: str) -> None:
        worker = self.workers[instance_id]
        assert not worker.leases, "what works is never stopped"
        if not worker.is_dead:
            worker.is_dead = True
            self._clock.after(self._rng.uniform(0.0, self._lag_s), lambda: self._freed(worker))

    def kill(self, worker: Worker, reason: str, *, crashed: bool) -> None:
        """It dies, and those it served are broken off."""
        worker.leases.clear()
        worker.is_dead = True
        worker.is_unlisted = True
        self._changed(worker.card)
        self._tell(InstanceFailed(worker.instance_id, reason, crashed=crashed))
        self._clock.after(self._rng.uniform(0.0, self._lag_s), lambda: self._freed(worker))

    def _look(self, worker: Worker, until_s: float) -> None:
        """Before the weights: waits until all that was promised is free."""
        if worker.is_dead:
            return
        if self._loading is Loading.UNCHECKED or self.free(worker.card) >= worker.promised_bytes:
            self._load(worker)
        elif self._clock.now_s < until_s:
            self._clock.after(_LOOK_EVERY_S, lambda: self._look(worker, until_s))
        else:
            self._decline(worker)

    def _load(self, worker: Worker) -> None:
        if self._loading is Loading.CHECKED:
            self._allocate(worker, int(worker.real_bytes * _PARTS[self._loading][0][1]))
            look_s = _SECOND_LOOK * worker.load_s
            patient_s = self._clock.now_s + look_s + _PATIENCE_S
            self._clock.after(look_s, lambda: self._look_again(worker, patient_s))
            return
        taken = 0
        for at, share in _PARTS[self._loading]:
            last = at == _PARTS[self._loading][-1][0]
            size = worker.real_bytes - taken if last else int(worker.real_bytes * share)
            taken += size
            self._clock.after(at * worker.load_s, partial(self._allocate, worker, size))
        self._clock.after(worker.load_s, lambda: self._ready(worker))

    def _look_again(self, worker: Worker, until_s: float) -> None:
        """Before the cache: waits until what is left of the promise is free."""
        if worker.is_dead:
            return
        if self.free(worker.card) >= worker.promised_bytes - worker.has_bytes:
            cache = int(worker.real_bytes * _CACHE_SHARE)
            self._allocate(worker, cache)
            scratch = partial(self._allocate_scratch, worker, cache, until_s)
            self._clock.after((1.0 - _SECOND_LOOK) * worker.load_s, scratch)
        elif self._clock.now_s < until_s:
            self._clock.after(_LOOK_EVERY_S, lambda: self._look_again(worker, until_s))
        else:
            self._decline(worker)

    def _allocate_scratch(self, worker: Worker, cache: int, until_s: float) -> None:
        if worker.is_dead:
            return
        size = worker.real_bytes - worker.has_bytes
        if size <= self.free(worker.card):
            self._allocate(worker, size)
            self._ready(worker)
        else:
            self._mishaps.refused_midway += 1
            worker.has_bytes -= cache
            self._changed(worker.card)
            self._look_again(worker, until_s)

    def _decline(self, worker: Worker) -> None:
        self._mishaps.declined += 1
        self.kill(worker, "no room after all", crashed=False)

    def _allocate(self, worker: Worker, size: int) -> None:
        if worker.is_dead:
            return
        if size > self.free(worker.card):
            self._mishaps.oom += 1
            self.kill(worker, "out of memory", crashed=False)
            return
        worker.has_bytes += size
        self._changed(worker.card)

    def _ready(self, worker: Worker) -> None:
        if not worker.is_dead:
            worker.is_ready = True
            real = {worker.card: worker.real_bytes}
            self._tell(InstanceReady(worker.instance_id, worker.load_s, worker.slots, real))

    def _freed(self, worker: Worker) -> None:
        """Its bytes are free now; the driver shows it later, and only then is the core told."""
        worker.has_bytes = 0
        self._changed(worker.card)
        self._clock.after(self._rng.uniform(0.0, self._lag_s), lambda: self._gone(worker))

    def _gone(self, worker: Worker) -> None:
        del self.workers[worker.instance_id]
        self._tell(InstanceGone(worker.instance_id))

    def _changed(self, card: str) -> None:
        """Bytes moved: keep the picture that a late reading will show."""
        self._mishaps.over_physical += self.used(card) > CARDS[card]
        shown = self.foreign[card] + sum(
            worker.has_bytes
            for worker in self.workers.values()
            if worker.card == card and worker.is_unlisted
        )
        if self._seen[card][-1][1] != shown:
            self._seen[card].append((self._clock.now_s, shown))
        self._moved()
