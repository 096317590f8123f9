"""Making room: which model is loaded next, whose place it takes, and when it is worth it.

A model that is waited for goes through: *fits now* → start; else *fits once these are gone* → a
claim on them, and start when their bytes are back. A claim is what makes this safe to do for
several models at once: the bytes it counts on are held for it, so nobody else's load slips into the
hole, and its victims are granted nothing more.

When to swap is the older question. Swapping at every request of another model is what makes a queue
in arrival order slow; never swapping starves. Idle victims go at once, unless an agent is expected
back on them before the swap would pay: then they are kept for `hold_s`, the pause between two steps
of a turn. Busy victims, and idle ones
under `wait_for_dry`, go when the waiter's turn has come: it is due (overtaken too often), or more
urgent than all that the victims serve, or it has waited so long that the swap, at its measured
cost, takes no more than `swap_share` of the time. The last is the ski-rental rule: work as long as
the swap costs, times a factor, then pay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import nsmallest

from appliance.scheduler import refill
from appliance.scheduler.book import Book, Claim, Instance, ModelState
from appliance.scheduler.eviction import Candidate, choose_victims
from appliance.scheduler.grants import is_preemptible, preempt
from appliance.scheduler.values import Fit, Misfit, ResidentState, StartInstance
from appliance.scheduler.waiting import Waiting
from appliance.types import Priority

_TRIED_PER_EVENT = 2
"""Waiting models for which victims are sought at one event: bounds the cost of a decision. The most
urgent go first and every later event tries again."""

_GIB = 1 << 30


def make_room(book: Book, now_s: float) -> bool:
    """Completes claims, starts what fits, claims room for what waits; True if anything changed."""
    if book.draining:
        return False
    changed = _complete_claims(book, now_s)
    urgent = _most_urgent(book, now_s)
    free = _open_free(book) if urgent else {}
    for state in urgent:
        if _load_for_waiters(book, state, free, now_s):
            changed, free = True, _open_free(book)
    for state in book.models.values():
        if state.wanted and book.may_load(state.spec.name, now_s):
            changed |= _load_wanted(book, state, now_s)
    return changed or _refill(book, now_s)


def density(book: Book, instance: Instance, now_s: float) -> float:
    """What keeping an instance is worth: reload seconds per second until its next use, per GiB."""
    state = book.models.get(instance.model)
    if state is None or instance.doomed:
        return 0.0
    next_use_s = max(book.forecast.next_use_s(instance.model, now_s), 1e-9)
    size = max(sum(book.ledger.held_by(instance.instance_id).values()) / _GIB, 1e-9)
    return state.load_s / next_use_s / size


def can_ever_fit(book: Book, state: ModelState) -> Fit | Misfit:
    """Where the model would go if everything but pinned instances were gone."""
    free = {account: book.ledger.capacity(account) for account in book.ledger.accounts()}
    for instance in book.instances.values():
        if instance.spec.pinned and instance.model != state.spec.name:
            for device, held in book.ledger.held_by(instance.instance_id).items():
                free[device] = free.get(device, 0) - held
    return book.placer.place(state.spec, {d: max(amount, 0) for d, amount in free.items()})


def start(book: Book, state: ModelState, fit: Fit, now_s: float, *, is_guess: bool = False) -> None:
    """Reserves the bytes and starts an instance: the only way into the ledger."""
    instance_id = book.fresh(state.spec.name)
    reserved = book.ledger.reserve(instance_id, fit.bytes_by_device)
    assert reserved, "a placement fits the free bytes it was given"
    instance = Instance(
        instance_id, state.spec, fit, ResidentState.STARTING, now_s, is_guess=is_guess
    )
    state.current, state.claim = instance, None
    book.instances[instance_id] = instance
    if fit.bytes_by_device:
        state.size_bytes = fit.total_bytes
        book.forecast.loaded(now_s, sum(1 for _ in book.ready()) + 1)
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
    models = book.models
    waited_for = [
        model
        for model in book.queue.models()
        if models[model].current is None and book.may_load(model, now_s)
    ]
    chosen = nsmallest(_TRIED_PER_EVENT, waited_for, key=book.queue.rank)
    return [book.models[model] for model in chosen]


def _complete_claims(book: Book, now_s: float) -> bool:
    changed = False
    claimed = [s for s in book.models.values() if s.claim is not None]
    for state in sorted(claimed, key=lambda s: s.claim.since_s if s.claim else 0.0):
        claim = state.claim
        assert claim is not None
        claim.victims &= book.instances.keys()
        if not state.wanted and not book.queue.count(state.spec.name):
            _give_up(book, state)
            changed = True
        elif not claim.victims:
            state.claim = None
            changed |= _start_if_it_fits(book, state, _open_free(book), now_s)
    return changed


def _give_up(book: Book, state: ModelState) -> None:
    """Nobody waits any more: victims that still work keep their place."""
    assert state.claim is not None
    for instance_id in state.claim.victims:
        victim = book.instances[instance_id]
        owner = book.models.get(victim.model)
        replaced = owner is None or owner.current is not None or owner.claim is not None
        if victim.state is ResidentState.DRAINING and owner is not None and not replaced:
            victim.state, victim.doomed, owner.current = ResidentState.READY, "", victim
    state.claim = None


def _start_if_it_fits(book: Book, state: ModelState, free: Mapping[str, int], now_s: float) -> bool:
    if not state.spec.needs_memory:
        start(book, state, Fit({}, state.spec.slots), now_s)
        return True
    fit = book.placer.place(state.spec, free)
    if isinstance(fit, Misfit):
        return False
    if _is_loading_on(book, fit.bytes_by_device):
        guesses = [i for i in refill.cuttable(book) if _share_a_device(i.fit, fit)]
        state.claim = Claim(fit, {guess.instance_id for guess in guesses}, now_s)
        for guess in guesses:
            book.leave(guess, f"{state.spec.name} is asked for", now_s)
    else:
        start(book, state, fit, now_s)
    return True


def _refill(book: Book, now_s: float) -> bool:
    """Loads the first model into free bytes that `refill` finds worth it."""
    missed = refill.candidates(book, now_s)
    free = _open_free(book) if missed else {}
    for state in missed:
        fit = book.placer.place(state.spec, free)
        if isinstance(fit, Misfit) or not fit.total_bytes:
            continue
        awaited = any(_share_a_device(fit, claim.fit) for claim in _claims(book))
        if not (awaited or _is_loading_on(book, fit.bytes_by_device)):
            start(book, state, fit, now_s, is_guess=True)
            return True
    return False


def _load_for_waiters(book: Book, state: ModelState, free: Mapping[str, int], now_s: float) -> bool:
    if _start_if_it_fits(book, state, free, now_s):
        return True
    oldest = book.queue.oldest(state.spec.name)
    assert oldest is not None
    return _claim(book, state, oldest, free, now_s)


def _claim(
    book: Book, state: ModelState, oldest: Waiting, free: Mapping[str, int], now_s: float
) -> bool:
    """Claims idle victims if they may go now, else busy ones if the waiter's turn has come.

    What has waiters of its own is not idle, even where the barrier keeps it from granting; and
    its place is only taken for a waiter who is older than all of them. Otherwise two models that
    both wait behind the barrier would evict each other for ever.
    """
    claimed = _claimed(book)
    leaving = [i for i in book.instances.values() if i.is_leaving and i.instance_id not in claimed]
    ready = [i for i in book.ready() if not i.spec.pinned and not _has_older(book, i, oldest)]
    idle = [i for i in ready if not (i.leases or book.queue.count(i.model))]
    if idle and _is_held(book, oldest):
        idle = []
    idle = [i for i in idle if not _is_between_steps(book, state, i, oldest, now_s)]
    leaving += refill.cuttable(book)
    found = _choose(book, state, free, leaving + idle, now_s) if leaving or idle else None
    if found is None and _turn_may_have_come(book, state, ready, oldest, now_s):
        found = _choose(book, state, free, leaving + ready, now_s)
        if found is not None and not _turn_has_come(book, state, found[1], oldest, now_s):
            return False
    if found is None:
        return False
    fit, victims = found
    state.claim = Claim(fit, {victim.instance_id for victim in victims}, now_s)
    for victim in victims:
        if not victim.is_leaving:
            _evict(book, victim, state, oldest, now_s)
    return True


def _choose(
    book: Book, state: ModelState, free: Mapping[str, int], among: list[Instance], now_s: float
) -> tuple[Fit, list[Instance]] | None:
    candidates = [
        Candidate(
            i.instance_id,
            book.ledger.held_by(i.instance_id),
            -1.0 if i.is_leaving else density(book, i, now_s),
        )
        for i in among
    ]
    found = choose_victims(state.spec, free, candidates, book.placer)
    if found is None:
        return None
    return found[0], [book.instances[victim.instance_id] for victim in found[1]]


def _has_older(book: Book, instance: Instance, than: Waiting) -> bool:
    """Somebody waits for this instance for longer."""
    oldest = book.queue.oldest(instance.model)
    return oldest is not None and oldest.seq < than.seq


def _is_held(book: Book, oldest: Waiting) -> bool:
    """Idle instances stay until the queue runs dry, where the policy asks for it."""
    if not book.policy.wait_for_dry or book.queue.is_due(oldest):
        return False
    return _work_elsewhere(book)


def _is_between_steps(
    book: Book, state: ModelState, instance: Instance, oldest: Waiting, now_s: float
) -> bool:
    """Idle for a moment only: its agent is expected back, and to wait for it costs less than two
    swaps. Bounded by `hold_s` each time, and by the turn of whoever waits."""
    hold_s = book.policy.hold_s
    if now_s - instance.idle_since_s >= hold_s or book.queue.is_due(oldest):
        return False
    if oldest.step.priority is Priority.INTERACTIVE:
        return False
    if _waited_s(oldest, [instance], now_s) >= swap_patience_s(book, state, [instance]):
        return False
    swap_s = state.load_s + book.models[instance.model].load_s
    return book.forecast.next_use_s(instance.model, now_s) <= swap_s


def _work_elsewhere(book: Book) -> bool:
    """Something works, is about to, or is being loaded."""
    if any(i.leases or book.queue.count(i.model) for i in book.ready()):
        return True
    loading = any(i.state is ResidentState.STARTING for i in book.instances.values())
    return loading or any(state.claim is not None for state in book.models.values())


def _turn_may_have_come(
    book: Book, state: ModelState, ready: list[Instance], oldest: Waiting, now_s: float
) -> bool:
    """The turn has come for one victim at least, without whom it has come for no set of them: all
    of a set have to be worth it, and its cost is the sum. Spares choosing them."""
    if book.queue.is_due(oldest):
        return True
    if book.policy.wait_for_dry:
        return False
    first = book.queue.first(state.spec.name)
    assert first is not None
    waits_s = now_s - oldest.since_s
    for victim in ready:
        cost_s = state.load_s + book.models[victim.model].load_s
        if min(waits_s, now_s - victim.ready_s) >= book.policy.swap_patience_s(cost_s):
            return True
        if _outranks(book, first, [victim]):
            return True
    return False


def _turn_has_come(
    book: Book, state: ModelState, victims: list[Instance], oldest: Waiting, now_s: float
) -> bool:
    if book.queue.is_due(oldest):
        return True
    if book.policy.wait_for_dry:
        return False
    first = book.queue.first(state.spec.name)
    assert first is not None
    if _outranks(book, first, victims):
        return True
    return _waited_s(oldest, victims, now_s) >= swap_patience_s(book, state, victims)


def _outranks(book: Book, first: Waiting, victims: list[Instance]) -> bool:
    """More urgent than all that the victims serve or would serve next, if anything."""
    mine, served = first.step.priority, False
    for victim in victims:
        for held in victim.leases.values():
            if held.step.priority <= mine:
                return False
            served = True
        next_up = book.queue.first(victim.model)
        if next_up is not None:
            if next_up.step.priority <= mine:
                return False
            served = True
    return served


def _waited_s(oldest: Waiting, victims: list[Instance], now_s: float) -> float:
    """How long the waiter has waited for these: a victim's turn begins when it is loaded."""
    return now_s - max([oldest.since_s, *(victim.ready_s for victim in victims)])


def swap_patience_s(book: Book, state: ModelState, victims: list[Instance]) -> float:
    """How long busy victims keep their place against a waiter, by `swap_share`."""
    return book.policy.swap_patience_s(state.load_s + reload_s(book, victims))


def reload_s(book: Book, victims: list[Instance]) -> float:
    """Seconds that loading these again would take."""
    return sum(book.models[v.model].load_s for v in victims if v.model in book.models)


def _evict(book: Book, victim: Instance, state: ModelState, oldest: Waiting, now_s: float) -> None:
    book.record(
        now_s,
        "evict",
        victim.model,
        instance=victim.instance_id,
        for_model=state.spec.name,
        forecast=book.forecast.followed,
        next_use_s=round(book.forecast.next_use_s(victim.model, now_s), 3),
        reload_s=round(book.models[victim.model].load_s, 3),
        density=round(density(book, victim, now_s), 9),
        leases=len(victim.leases),
        waited_s=round(now_s - oldest.since_s, 3),
        overtaken=oldest.overtaken,
    )
    for held in victim.leases.values():
        if is_preemptible(held) and oldest.step.priority < held.step.priority:
            preempt(book, victim, held, f"{state.spec.name} needs the place", now_s)
    book.leave(victim, f"room for {state.spec.name}", now_s)


def _load_wanted(book: Book, state: ModelState, now_s: float) -> bool:
    """A preload takes free bytes only, a pinned model also those of idle others."""
    free = _open_free(book)
    if _start_if_it_fits(book, state, free, now_s):
        return True
    if not state.spec.pinned:
        return False
    idle = [i for i in book.ready() if not i.spec.pinned and not i.leases]
    found = _choose(book, state, free, idle, now_s)
    if found is None:
        return False
    state.claim = Claim(found[0], {victim.instance_id for victim in found[1]}, now_s)
    for victim in found[1]:
        book.leave(victim, f"{state.spec.name} is pinned", now_s)
    return True


def _open_free(book: Book) -> dict[str, int]:
    """Free bytes per device less what outstanding claims count on."""
    free = book.ledger.all_free()
    for state in book.models.values():
        if state.claim is None:
            continue
        victims = [book.ledger.held_by(victim) for victim in state.claim.victims]
        for device, need in state.claim.fit.bytes_by_device.items():
            coming = sum(held.get(device, 0) for held in victims)
            free[device] = max(free.get(device, 0) - max(need - coming, 0), 0)
    return free


def _claims(book: Book) -> Iterator[Claim]:
    return (state.claim for state in book.models.values() if state.claim is not None)


def _claimed(book: Book) -> set[str]:
    """Instances whose bytes somebody counts on."""
    return {victim for claim in _claims(book) for victim in claim.victims}


def _is_loading_on(book: Book, devices: Mapping[str, int]) -> bool:
    """One load at a time on a device: engines that measure free memory charge each other's."""
    return any(
        i.state is ResidentState.STARTING and not devices.keys().isdisjoint(i.fit.bytes_by_device)
        for i in book.instances.values()
    )


def _share_a_device(one: Fit, other: Fit) -> bool:
    return not one.bytes_by_device.keys().isdisjoint(other.bytes_by_device)
