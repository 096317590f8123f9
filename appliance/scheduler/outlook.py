"""Predictions: how long a request would wait, and the picture that others may look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial

from appliance.scheduler.book import Book
from appliance.scheduler.instances import Instance, ModelState
from appliance.scheduler.rotation import Rotation, rotation
from appliance.scheduler.values import Capacity, DeviceCapacity, ModelCapacity, ResidentState

_GIB = 1 << 30


def service_s(book: Book, model: str) -> float:
    """Seconds a step takes on this model, by what was measured."""
    return book.models[model].service_s


def waits_s(book: Book, models: Iterable[str], now_s: float) -> list[float]:
    """For each of the models, seconds until a request that joins its queue now would get a slot."""
    turns = cache(partial(rotation, book, now_s))  # worked out once, if anybody needs them
    return [_wait_s(book, model, now_s, turns) for model in models]


def _wait_s(book: Book, model: str, now_s: float, turns: Callable[[], Rotation]) -> float:
    state = book.models[model]
    instance, ahead = state.current, book.queue.count(model)
    if instance is None:
        slots, loading_s = max(state.spec.slots, 1), state.load_s + _room_s(book, state, turns)
        loading_s += state.breaker.retry_in_s(now_s)
    elif instance.state is ResidentState.STARTING:
        slots = max(instance.fit.slots, 1)
        loading_s = max(state.load_s - (now_s - instance.started_s), 0.0)
    else:
        slots, loading_s = instance.slots, 0.0
        if instance.slots_free > ahead:
            return 0.0
        ahead += 1 - instance.slots_free
    return loading_s + ahead / slots * state.service_s


def density(book: Book, instance: Instance, now_s: float) -> float:
    """What keeping an instance is worth: reload seconds per second until its next use, per GiB."""
    state = book.models.get(instance.model)
    if state is None or instance.doomed:
        return 0.0
    next_use_s = max(book.next_use_s(instance.model, now_s), 1e-9)
    if not instance.grants and now_s < instance.ahead_until_s:
        next_use_s = min(next_use_s, 1 / instance.ahead_rate)
    size = max(sum(book.ledger.held_by(instance.instance_id).values()) / _GIB, 1e-9)
    return state.load_s / next_use_s / size


def capacity(book: Book, now_s: float) -> Capacity:
    """The frozen picture for the router and for status."""
    waits = waits_s(book, book.models, now_s)
    models = {
        name: _model(book, state, now_s, wait_s)
        for (name, state), wait_s in zip(book.models.items(), waits, strict=True)
    }
    return Capacity(now_s, models, devices(book, now_s), len(book.queue), len(book.leases))


def devices(book: Book, now_s: float) -> tuple[DeviceCapacity, ...]:
    """The part of that picture that costs no predictions."""
    return tuple(
        DeviceCapacity(
            name,
            book.views[name].capacity_bytes if name in book.views else 0,
            book.ledger.used(name),
            book.foreign.held(name, now_s),
        )
        for name in book.ledger.accounts()
    )


def _room_s(book: Book, state: ModelState, turns: Callable[[], Rotation]) -> float:
    """Seconds until there is room for a model that has none."""
    if not state.spec.needs_memory:
        return 0.0
    if state.claim is not None:  # the last steps of those who make room
        last = [i for i in book.leaving.values() if i.leases and i.model in book.models]
        return max((book.models[i.model].service_s for i in last), default=0.0)
    if any(free >= state.size_bytes for free in book.open_free().values()):
        return 0.0
    return turns().room_s(book.queue.lines.get(state.spec.name), state.load_s)


def _model(book: Book, state: ModelState, now_s: float, wait_s: float) -> ModelCapacity:
    name, instance = state.spec.name, state.current
    if instance is None:
        leaving = [i for i in book.instances.values() if i.model == name]
        resident = leaving[0].state if leaving else ResidentState.ABSENT
        if state.breaker.is_open(now_s):
            resident = ResidentState.BROKEN
        held: dict[str, int] = {}
    else:
        resident, held = instance.state, dict(book.ledger.held_by(instance.instance_id))
    return ModelCapacity(
        model=name,
        state=resident,
        slots=instance.slots if instance else 0,
        slots_free=instance.slots_free if instance else 0,
        waiting=book.queue.count(name),
        predicted_wait_s=wait_s,
        load_s=state.load_s,
        tokens_per_s=state.tokens_per_s,
        vram_bytes=sum(held.values()),
        bytes_by_device=held,
        instance_id=instance.instance_id if instance else None,
        reason=state.breaker.reason if resident is ResidentState.BROKEN else "",
    )
