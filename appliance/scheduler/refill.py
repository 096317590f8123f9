"""Idle memory is put to use: what is expected soonest comes back, into free bytes alone.

Models leave against their will all the time: another program needed the card for a minute, the
worker died, the configuration changed, somebody's request took the place and is done by now. The
next request would wait for a load although the bytes have long been free. So where nobody waits for
a load, the model that the forecast expects first is loaded into what is free: a *guess*.

A guess costs nobody anything. Nothing is evicted for it; it is cut short as soon as a request needs
its bytes or its device's one load at a time; and idle as it then is, it is among the first to go.
One at a time, so that a machine that just came free is not busy with guesses alone. What left for
lack of use (`ModelState.in_use`) stays away until somebody asks for it, and so does what failed
when it was guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import nsmallest

from appliance.scheduler.book import Book
from appliance.scheduler.instances import Instance, ModelState

_TRIED = 8
"""Models for which room is sought at one event: bounds the cost of a decision."""


def is_quiet(book: Book, now_s: float) -> bool:
    """Nobody's load runs or is due (room for it may be in the making: its bytes are not free, and
    the disk is), nor does anything make way for a preload: a guess may be made."""
    if book.making_way or not all(instance.is_guess for instance in book.starting.values()):
        return False
    return not any(book.may_load(book.models[model], now_s) for model in book.queue.models())


def candidates(book: Book, now_s: float) -> list[ModelState]:
    """Models worth having back, soonest next use first."""
    free_bytes = sum(book.ledger.all_free().values())
    missed = [
        state
        for state in book.models.values()
        if state.in_use
        and state.spec.needs_memory
        and 0 < state.size_bytes <= free_bytes
        and book.may_load(state, now_s)
        and not state.breaker.broken
    ]
    return nsmallest(
        _TRIED, missed, key=lambda s: (book.next_use_s(s.spec.name, now_s), s.spec.name)
    )


def cuttable(book: Book) -> Iterator[Instance]:
    """Guesses that still load and that nobody has come to wait for."""
    for instance in book.starting.values():
        if instance.is_guess and not book.queue.count(instance.model):
            yield instance
