"""Whose place may be taken for a waiter, and when.

Idle models give way at once, unless an agent is expected back on them before the swap would pay:
then they are kept for `hold_s`, the pause between two steps of a turn. Busy ones give way when the
waiter's turn has come: it is due (overtaken too often), or more urgent than all that they serve, or
their own turn is over. A turn is a share of two budgets, in proportion to the weight of the agents
that the model serves among all who contend for a place: of the times a waiter may be overtaken, so
that those who take turns never make each other due; and of the seconds after which a swap, at its
measured cost, takes no more than `swap_share` of the time (the ski-rental rule: work as long as the
swap costs, times a factor, then pay). So two agents who share a model get a turn twice as long as
one who has a model to itself, and everybody the same.

What has waiters of its own is not idle, even where the barrier keeps it from granting; and its
place is only taken for a waiter who is older than all of them. Otherwise two models that both wait
behind the barrier would evict each other for ever.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.scheduler.book import Book
from appliance.scheduler.instances import Instance, ModelState
from appliance.scheduler.waiting import Waiting
from appliance.types import Priority


def places(
    book: Book, state: ModelState, oldest: Waiting, now_s: float
) -> tuple[list[Instance], list[Instance]]:
    """The idle instances that may go now, and the others whose place may ever be taken for this
    waiter."""
    idle: list[Instance] = []
    busy: list[Instance] = []
    lines, seq = book.queue.lines, oldest.seq
    for instance in book.ready():
        if instance.spec.pinned:
            continue
        line = lines.get(instance.model)
        if line is None:
            (busy if instance.leases else idle).append(instance)
        elif line.oldest.seq > seq:
            busy.append(instance)
    if not idle:
        return idle, busy
    if _is_held(book, oldest):
        return [], busy + idle
    held = [i for i in idle if _is_between_steps(book, state, i, oldest, now_s)]
    return [i for i in idle if i not in held], busy + held


def _is_held(book: Book, oldest: Waiting) -> bool:
    """Idle instances stay until the queue runs dry, where the policy asks for it."""
    if not book.policy.wait_for_dry or book.queue.is_due(oldest):
        return False
    return _work_elsewhere(book)


def _is_between_steps(
    book: Book, state: ModelState, instance: Instance, oldest: Waiting, now_s: float
) -> bool:
    """Idle for a moment only: what it saves if it is asked for again, a swap there and back, times
    how often that happens, is more than the wait. Bounded by `hold_s` each time, and by the turn
    of whoever waits. A forecast from arrivals would not do: who never gets two steps in a row
    asks as seldom as that."""
    hold_s = book.policy.hold_s
    if now_s - instance.idle_since_s >= hold_s or book.queue.is_due(oldest):
        return False
    if oldest.step.priority is Priority.INTERACTIVE:
        return False
    if _is_turn_over(book, state, [instance], oldest, now_s):
        return False
    held = book.models[instance.model]
    return held.keeps_coming * (state.load_s + held.load_s) >= hold_s


def _work_elsewhere(book: Book) -> bool:
    """Something works, is about to, or is being loaded."""
    if any(i.leases or book.queue.count(i.model) for i in book.ready()):
        return True
    return bool(book.starting or book.claiming)


def turns_over(
    book: Book, state: ModelState, busy: list[Instance], oldest: Waiting, now_s: float
) -> list[Instance]:
    """Those of them whose place may be taken now. A set of them need not be worth it together."""
    if book.queue.is_due(oldest):
        return busy
    if book.policy.wait_for_dry:
        return []
    first = book.queue.first(state.spec.name)
    assert first is not None
    return [
        victim
        for victim in busy
        if _outranks(book, first, [victim]) or _is_turn_over(book, state, [victim], oldest, now_s)
    ]


def turn_has_come(
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
    return _is_turn_over(book, state, victims, oldest, now_s)


def _outranks(book: Book, first: Waiting, victims: list[Instance]) -> bool:
    """More urgent than all that the victims serve or would serve next, if anything."""
    mine, served = first.step.priority, False
    if mine is Priority.BACKGROUND:
        return False
    lines = book.queue.lines
    for victim in victims:
        for held in victim.leases.values():
            if held.step.priority <= mine:
                return False
            served = True
        line = lines.get(victim.model)
        if line is not None:
            if line.first.step.priority <= mine:
                return False
            served = True
    return served


def _is_turn_over(
    book: Book, state: ModelState, victims: Sequence[Instance], oldest: Waiting, now_s: float
) -> bool:
    """The victims have had their share since the waiter came, or since they were loaded."""
    contention, since_s = book.contention(), oldest.since_s
    mine, grants, began_s, cost_s = 0.0, 0, since_s, state.load_s
    for victim in victims:
        mine += victim.weight_since(since_s)
        grants += victim.grants
        began_s = max(began_s, victim.ready_s)
        cost_s += book.models[victim.model].load_s
    share = contention.share(mine)
    if min(oldest.overtaken, grants) >= max(book.policy.max_overtaken * share, 1.0):
        return True
    turn_s = book.policy.swap_patience_s(cost_s) * share * (contention.models + len(victims))
    return now_s - began_s >= turn_s
