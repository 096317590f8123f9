"""As well as it can be had, or later: a model is not put on the host because its card is busy.

A model whose layers all go on cards, were everybody gone who may go, is loaded on cards alone: a
layer in host memory costs at every token, a reload once (docs/adr/0031). One that is too large for
that may have a few layers more on the host than at best, which costs less than a reload; and a very
small one is quick there, and nobody has to go for it. What was loaded onto the host while another
program had the cards goes, once idle, when they can be had again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from appliance.scheduler.book import Book
from appliance.scheduler.eviction import Candidate, choose_victims, freed
from appliance.scheduler.instances import Instance, ModelState
from appliance.scheduler.values import Fit, Misfit

_ENOUGH = 0.75
"""Of the share on cards that it would have at best, where that is not all of it."""
_QUICK_ON_HOST_BYTES = 1 << 30
"""Weights and cache that host memory reads 20 times a second or more, once for each token."""


def examine(book: Book, state: ModelState) -> None:
    """Notes what the model would get if all others were gone but the pinned; once an epoch."""
    if state.checked_epoch == book.epoch:
        return
    free = {account: book.ledger.capacity(account) for account in book.ledger.accounts()}
    for instance in book.instances.values():
        if instance.spec.pinned and instance.model != state.spec.name:
            for device, held in book.ledger.held_by(instance.instance_id).items():
                free[device] = free.get(device, 0) - held
    fit = book.placer.place(state.wish, {d: max(amount, 0) for d, amount in free.items()})
    state.checked_epoch = book.epoch
    if isinstance(fit, Misfit):
        state.misfit, state.size_bytes, state.best_on_cards = fit, 0, 0.0
    else:
        state.misfit, state.size_bytes, state.best_on_cards = None, fit.total_bytes, fit.on_cards


def place(book: Book, state: ModelState, free: Mapping[str, int]) -> Fit | Misfit:
    """Where the model goes among free bytes, not much worse than at best."""
    examine(book, state)
    return book.placer.place(state.wish, free, enough(state.best_on_cards, state.size_bytes))


def fits(book: Book, state: ModelState, free: Mapping[str, int]) -> bool:
    """Whether there is such a place."""
    examine(book, state)
    return book.placer.fits(state.wish, free, enough(state.best_on_cards, state.size_bytes))


def make_way(
    book: Book, state: ModelState, candidates: Sequence[Candidate]
) -> tuple[Fit, list[Instance]] | None:
    """Where the model goes once some of these are gone, and who they are; for candidates who
    together make room."""
    free = book.open_free()
    victims = choose_victims(free, candidates, partial(fits, book, state))
    fit = place(book, state, freed(free, victims))
    if isinstance(fit, Misfit):  # the split found for it was seen to need more than was reckoned
        return None
    return fit, [book.instances[victim.instance_id] for victim in victims]


def enough(best_on_cards: float, size_bytes: int) -> float:
    """Share of its layers on cards with which a model of this size is loaded, which could have so
    much."""
    if size_bytes <= _QUICK_ON_HOST_BYTES:
        return 0.0
    return best_on_cards if best_on_cards == 1.0 else _ENOUGH * best_on_cards


def has_more(book: Book, state: ModelState, instance: Instance) -> bool:
    """Whether it was loaded with less than it wishes for and could have all that by now, without
    that anybody has to go."""
    if not instance.is_less or state.part is not None or instance.looked_room == book.room:
        return False
    instance.looked_room = book.room
    more = place(book, state, book.freed([instance]))
    return isinstance(more, Fit) and not more.is_less


def could_have_more(book: Book, state: ModelState, instance: Instance) -> bool:
    """Whether it could have more slots than it has, if those who idle go."""
    if state.wish.slots <= instance.slots:
        return False
    idle = [other for other in book.ready() if not (other.leases or other.spec.pinned)]
    more = place(book, state, book.freed([instance, *(i for i in idle if i is not instance)]))
    return isinstance(more, Fit) and more.slots > instance.slots


def is_much_worse(book: Book, state: ModelState, fit: Fit) -> bool:
    """Whether this place is one for want of a better that can be had by now."""
    if fit.on_cards == 1.0:
        return False
    examine(book, state)
    return fit.on_cards < _ENOUGH * enough(state.best_on_cards, state.size_bytes)
