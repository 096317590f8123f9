"""When to find out anew who can be loaded beside whom (`together`): the set in use changed.

In use is what was asked for several times of late, and what is to be loaded without being asked
for: a model that is wanted once takes no slots from others for good. It is looked at when a model
is asked for that has to be loaded, as its load is what the answer is for; the answer comes later,
and holds for the loads after it.
"""

from __future__ import annotations

from collections.abc import Mapping

from appliance.scheduler import best
from appliance.scheduler.book import Book
from appliance.scheduler.instances import ModelState
from appliance.scheduler.values import ModelSpec, ResidentState, Shared, ShareOut, Use

_OFTEN = 2.5
"""Uses of late (`ModelState.uses_at`): three within a few minutes."""
_SETTLED_S = 300.0
"""For so long a load with few slots is kept at least, however many steps wait for it."""
_EVERY_S = 60.0
"""How often it is looked whether somebody is not in use any more."""
_SAME = 0.02
"""A card's capacity that differs by less than this share is the same as before."""


def asked(book: Book, state: ModelState, now_s: float) -> None:
    """A step wants the model: if it is to be loaded, who is beside it? And if steps wait for it as
    it was given few slots, it is loaded anew where it may have more by now."""
    instance = state.current
    if instance is None:
        consider(book, state.spec.name, now_s)
        return
    if not (instance.is_less and book.queue.count(state.spec.name)):
        return
    if instance.state is ResidentState.READY and now_s - instance.ready_s > _SETTLED_S:
        consider(book, state.spec.name, now_s)
        if best.could_have_more(book, state, instance):
            reason = f"more steps want it at once than its {instance.slots} slots"
            book.leave(instance, reason, now_s)


def consider(book: Book, asked: str, now_s: float) -> None:
    """Asks for the parts of the models in use, unless it is known or nobody's to be less."""
    state = book.sharing
    if asked in state.of and book.epoch == state.epoch and now_s < state.until_s:
        return
    state.epoch, state.until_s = book.epoch, now_s + _EVERY_S
    using = {
        model.spec: Use(max(model.uses_at(now_s), 1.0) * model.load_s, model.needs_slots(now_s))
        for model in book.models.values()
        if _is_used(model, now_s)
    }
    of = {s.name: (s.fingerprint, min(use.slots, s.slots)) for s, use in using.items()}
    capacity = book.ledger.capacities()
    if of == state.of and _is_alike(capacity, state.capacity):
        return
    state.of, state.capacity = of, dict(capacity)
    state.number += 1
    if len(using) > 1 and any(spec.is_elastic for spec in using):
        book.effects.append(ShareOut(state.number, using, dict(capacity)))
    else:
        _share(book, {}, now_s)


def forget(book: Book, now_s: float) -> None:
    """The models are others, or other sizes are known of them: what was found out is void."""
    book.sharing.of = {}
    consider(book, "", now_s)


def shared(book: Book, event: Shared, now_s: float) -> None:
    """The parts are known; an answer that came too late is none."""
    if event.number == book.sharing.number:
        _share(book, event.parts, now_s)


def _share(book: Book, parts: Mapping[str, ModelSpec], now_s: float) -> None:
    for name, state in book.models.items():
        part = parts.get(name)
        if part is not None and part.fingerprint != state.spec.fingerprint:
            part = None
        if part != state.part:
            state.part, state.checked_epoch, state.misfit_room = part, -1, -1
        told = state.wish.slots, part is not None
        if told != state.part_told and (part is not None or state.part_told is not None):
            state.part_told = told
            book.record(
                now_s,
                "share",
                name,
                slots=told[0],
                wished_slots=state.spec.slots,
                is_less=told[1],
                models=len(book.sharing.of),
            )


def _is_used(state: ModelState, now_s: float) -> bool:
    if not state.spec.needs_memory:
        return False
    return state.wanted or state.uses_at(now_s) >= _OFTEN


def _is_alike(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    return one.keys() == other.keys() and all(
        abs(size - other[device]) <= _SAME * max(size, other[device])
        for device, size in one.items()
    )
