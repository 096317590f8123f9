"""Making room: which model is loaded next, whose place it takes, and when it is worth it.

A model that is waited for goes through: *fits now* → start; else *fits once these are gone* → a
claim on them, and start when their bytes are back. A claim is what makes this safe to do for
several models at once: the bytes it counts on are held for it, so nobody else's load slips into the
hole, and its victims are granted nothing more.

When to swap is the older question. Swapping at every request of another model is what makes a queue
in arrival order slow; never swapping starves. `patience` answers it.
"""

from __future__ import annotations

from collections.abc import Mapping

from appliance.scheduler import best, patience, preload, refill
from appliance.scheduler.book import Book
from appliance.scheduler.eviction import Candidate
from appliance.scheduler.grants import is_preemptible, preempt
from appliance.scheduler.instances import Claim, Instance, ModelState
from appliance.scheduler.outlook import density
from appliance.scheduler.values import Fit, Misfit, ResidentState, StartInstance
from appliance.scheduler.waiting import Waiting

_TRIED_PER_EVENT = 2
"""Waiting models for which victims are sought at one event: bounds the cost of a decision. The most
urgent go first and every later event tries again."""


def make_room(book: Book, now_s: float) -> bool:
    """Completes claims, starts what fits, claims room for what waits; True if anything changed."""
    if book.draining:
        return False
    changed = _complete_claims(book, now_s)
    for state in _most_urgent(book, now_s):
        if state.refused_at == book.moment:
            continue
        if _load_for_waiters(book, state, now_s):
            changed = True
        else:
            state.refused_at = book.moment
        if state.current is None:
            book.read_ahead(state, now_s)
    changed = changed or _start_behind(book, now_s)
    for state in book.wanted:
        if book.may_load(state, now_s):
            changed |= _load_wanted(book, state, now_s)
    if changed or not refill.is_quiet(book, now_s):
        return changed
    return _preload(book, now_s) or _refill(book, now_s)


def start(book: Book, state: ModelState, fit: Fit, now_s: float, *, is_guess: bool = False) -> None:
    """Reserves the bytes and starts an instance: the only way into the ledger."""
    instance_id = book.fresh(state.spec.name)
    reserved = book.ledger.reserve(instance_id, fit.bytes_by_device)
    assert reserved, "a placement fits the free bytes it was given"
    instance = Instance(
        instance_id,
        state.spec,
        fit,
        ResidentState.STARTING,
        now_s,
        is_guess=is_guess,
        is_less=fit.is_less or state.part is not None,
    )
    book.add(state, instance)
    book.room_made_for = ""
    if fit.bytes_by_device:
        state.size_bytes = fit.total_bytes
        book.forecast.loaded(now_s, len(book.ready()) + 1)
    book.effects.append(StartInstance(instance_id, state.spec, fit))
    book.record(
        now_s,
        "load",
        state.spec.name,
        instance=instance_id,
        bytes=dict(fit.bytes_by_device),
        slots=fit.slots,
        waiting=book.queue.count(state.spec.name),
        guess=is_guess,
        expected_load_s=round(state.load_s, 3),
    )


def _most_urgent(book: Book, now_s: float) -> list[ModelState]:
    """The models to try: of those that wait their turn the due ones by age, then by key."""
    found: list[ModelState] = []
    for model in book.queue.by_urgency():
        state = book.models[model]
        if book.may_load(state, now_s):
            found.append(state)
            if len(found) == _TRIED_PER_EVENT:
                break
    return found


def _start_behind(book: Book, now_s: float) -> bool:
    """Starts one that fits into free bytes although more urgent ones wait for their room to be
    made: they gain nothing by its waiting too. Not where one is due, or a claim is to be filled."""
    if next(book.queue.due_lines(), None) is not None:
        return False
    most_bytes, tried = sum(book.open_free().values()), 0
    for model in book.queue.by_urgency():
        state = book.models[model]
        is_known_misfit = state.misfit_room == book.room or not 0 < state.size_bytes <= most_bytes
        if is_known_misfit or not book.may_load(state, now_s):
            continue
        fit = best.place(book, state, book.open_free())
        if isinstance(fit, Misfit):
            state.misfit_room = book.room
        elif not (fit.is_less or _is_awaited(book, fit)):
            start(book, state, fit, now_s)
            return True
        tried += 1
        if tried == _TRIED_PER_EVENT:
            break
    return False


def _complete_claims(book: Book, now_s: float) -> bool:
    changed = False
    for state in list(book.claiming.values()):
        claim = state.claim
        assert claim is not None
        if not state.wanted and state.spec.name not in book.queue.lines:
            _give_up(book, state)
            changed = True
        elif not claim.victims and _may_go_on(book, claim):
            book.claim(state, None)
            changed |= _start_if_it_fits(book, state, now_s, claimed=claim.fit)
    return changed


def _may_go_on(book: Book, claim: Claim) -> bool:
    """The load that its device was busy with is over, or there may be room elsewhere by now."""
    if claim.returns != book.returns:
        return True
    return not _is_loading_on(book, claim.fit.bytes_by_device)


def _give_up(book: Book, state: ModelState) -> None:
    """Nobody waits any more: victims that still work keep their place."""
    assert state.claim is not None
    for instance_id in state.claim.victims:
        victim = book.instances[instance_id]
        owner = book.models.get(victim.model)
        replaced = owner is None or owner.current is not None or owner.claim is not None
        if victim.state is ResidentState.DRAINING and owner is not None and not replaced:
            book.reopen(owner, victim)
    book.claim(state, None)


def _start_if_it_fits(
    book: Book, state: ModelState, now_s: float, claimed: Fit | None = None
) -> bool:
    """Starts the model where it fits best, or where it was `claimed` to if the best place is busy
    with a load: a claim that moved on would cut one guess after the other."""
    if not state.spec.needs_memory:
        start(book, state, Fit({}, state.spec.slots), now_s)
        return True
    if state.misfit_room == book.room:
        return False
    fit = best.place(book, state, book.open_free())
    if isinstance(fit, Misfit):
        state.misfit_room = book.room
        return False
    if claimed is not None and _is_loading_on(book, fit.bytes_by_device):
        fit = _still_there(book, state, claimed) or fit
    if _is_loading_on(book, fit.bytes_by_device):
        guesses = [i for i in refill.cuttable(book) if _share_a_device(i.fit, fit)]
        book.claim(state, Claim(fit, {guess.instance_id for guess in guesses}, now_s, book.returns))
        for guess in guesses:
            book.leave(guess, f"{state.spec.name} is asked for", now_s)
    elif claimed is not None or not (fit.is_less and _waits_for_more(book, state, fit, now_s)):
        start(book, state, fit, now_s)
    return True


def _waits_for_more(book: Book, state: ModelState, fit: Fit, now_s: float) -> bool:
    """Claims what is about to be free, where that gives the model more: its own predecessor after
    a change of its configuration, say. It would have the less for as long as it stays."""
    soon = [i for i in _unclaimed_leaving(book) if i.state is ResidentState.STOPPING]
    if not soon:
        return False
    more = best.place(book, state, book.freed(soon))
    if isinstance(more, Misfit) or (more.is_less and more.slots <= fit.slots):
        return False
    book.claim(state, Claim(more, {i.instance_id for i in soon}, now_s, book.returns))
    return True


def _preload(book: Book, now_s: float) -> bool:
    """Loads what is expected next into free bytes, or makes room for it: once the bytes are back it
    is asked again what they are good for."""
    if book.starting or book.claiming or not book.policy.preloads:
        return False
    found = preload.choose(book, now_s)
    if found is None:
        return False
    name = found.state.spec.name
    if found.victims or book.room_made_for != name:
        preload.decide(book, found, now_s)
    if not found.victims:
        start(book, found.state, found.fit, now_s, is_guess=True)
        preload.keep(found, now_s)
        return True
    book.room_made_for = name
    for victim in found.victims:
        book.making_way.add(victim.instance_id)
        book.leave(victim, f"{name} is expected sooner", now_s)
    return True


def _refill(book: Book, now_s: float) -> bool:
    """Loads the first model into free bytes that `refill` finds worth it."""
    missed = refill.candidates(book, now_s)
    for state in missed:
        fit = best.place(book, state, book.open_free())
        if isinstance(fit, Misfit) or not fit.total_bytes or (fit.is_less and book.leaving):
            continue
        if not _is_awaited(book, fit):
            start(book, state, fit, now_s, is_guess=True)
            return True
    return False


def _load_for_waiters(book: Book, state: ModelState, now_s: float) -> bool:
    if _start_if_it_fits(book, state, now_s):
        return True
    oldest = book.queue.oldest(state.spec.name)
    assert oldest is not None
    return _claim(book, state, oldest, now_s)


def _claim(book: Book, state: ModelState, oldest: Waiting, now_s: float) -> bool:
    """Claims idle victims if they may go now, else also busy ones whose turn is over."""
    leaving = _unclaimed_leaving(book)
    idle, busy = patience.places(book, state, oldest, now_s)
    found = _choose(book, state, leaving + idle, now_s)
    if found is None and (over := patience.turns_over(book, state, busy, oldest, now_s)):
        found = _choose(book, state, leaving + idle + over, now_s)
        staying = [v for v in found[1] if v.state is ResidentState.READY] if found else []
        if staying and not patience.turn_has_come(book, state, staying, oldest, now_s):
            return False
    if found is None:
        return False
    fit, victims = found
    book.claim(state, Claim(fit, {victim.instance_id for victim in victims}, now_s, book.returns))
    for victim in victims:
        if not victim.is_leaving:
            _evict(book, victim, state, oldest, now_s)
    return True


def _choose(
    book: Book, state: ModelState, among: list[Instance], now_s: float
) -> tuple[Fit, list[Instance]] | None:
    if not among or not best.fits(book, state, book.freed(among)):
        return None
    book.forecast.prepare([instance.model for instance in among], now_s)
    candidates = [
        Candidate(
            i.instance_id,
            book.ledger.held_by(i.instance_id),
            -1.0 if i.is_leaving else density(book, i, now_s),
        )
        for i in among
    ]
    return best.make_way(book, state, candidates)


def _evict(book: Book, victim: Instance, state: ModelState, oldest: Waiting, now_s: float) -> None:
    book.record(
        now_s,
        "evict",
        victim.model,
        instance=victim.instance_id,
        for_model=state.spec.name,
        forecast=book.forecast.followed,
        next_use_s=round(book.next_use_s(victim.model, now_s), 3),
        reload_s=round(book.models[victim.model].load_s, 3),
        density=round(density(book, victim, now_s), 9),
        leases=len(victim.leases),
        grants=victim.grants,
        share=round(book.contention().share(victim.clients_weight), 3),
        waited_s=round(now_s - oldest.since_s, 3),
        overtaken=oldest.overtaken,
    )
    for held in victim.leases.values():
        if is_preemptible(held) and oldest.step.priority < held.step.priority:
            preempt(book, victim, held, f"{state.spec.name} needs the place", now_s)
    book.leave(victim, f"room for {state.spec.name}", now_s)


def _load_wanted(book: Book, state: ModelState, now_s: float) -> bool:
    """A preload takes free bytes only, a pinned model also those of idle others."""
    if _start_if_it_fits(book, state, now_s):
        return True
    if not state.spec.pinned:
        return False
    idle = [i for i in book.ready() if not i.spec.pinned and not i.leases]
    found = _choose(book, state, idle, now_s)
    if found is None:
        return False
    book.claim(
        state, Claim(found[0], {victim.instance_id for victim in found[1]}, now_s, book.returns)
    )
    for victim in found[1]:
        book.leave(victim, f"{state.spec.name} is pinned", now_s)
    return True


def _unclaimed_leaving(book: Book) -> list[Instance]:
    """What leaves, or may be cut short at once, and whose bytes nobody counts on yet."""
    leaving = list(refill.cuttable(book))
    if book.leaving:
        claimed = {victim for claim in book.claims() for victim in claim.victims}
        leaving[:0] = [i for name, i in book.leaving.items() if name not in claimed]
    return leaving


def _is_loading_on(book: Book, devices: Mapping[str, int]) -> bool:
    """One load at a time on a device: engines that measure free memory charge each other's."""
    return any(not devices.keys().isdisjoint(i.fit.bytes_by_device) for i in book.starting.values())


def _still_there(book: Book, state: ModelState, claimed: Fit) -> Fit | None:
    """A place on the devices that were claimed, where no load is in progress."""
    if _is_loading_on(book, claimed.bytes_by_device):
        return None
    free = book.open_free()
    fit = best.place(book, state, {d: free.get(d, 0) for d in claimed.bytes_by_device})
    return None if isinstance(fit, Misfit) else fit


def _is_awaited(book: Book, fit: Fit) -> bool:
    """Another load runs there, or is to begin as soon as there is room."""
    if any(_share_a_device(fit, claim.fit) for claim in book.claims()):
        return True
    return _is_loading_on(book, fit.bytes_by_device)


def _share_a_device(one: Fit, other: Fit) -> bool:
    return not one.bytes_by_device.keys().isdisjoint(other.bytes_by_device)
