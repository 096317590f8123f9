"""Who gets a free slot: the fair queue's order, and the barrier that bounds overtaking.

A loaded model's waiters are served in the queue's order whenever a slot is free, past others who
wait for models that are not loaded: that is collation, and it saves more loads than any choice of
victim. The bound: each pass is counted at those passed over (`Waiting.overtaken`). As long as
somebody is *due* and others could still delay his load, nobody who came later and is not more
urgent is granted anything. Leases end, instances fall idle, `room` stops them, the barrier lifts.

Proof of the bound. Let R wait for a model that is not loaded and can be delayed. A grant to a
later, not more urgent request adds one to R's count, and it happens only while no older due request
stands as a barrier, so in particular only while R's own count is below `max_overtaken`. Hence the
count never exceeds it. Once R's load cannot be delayed any more (its victims are idle or gone, or
it is loading), passes cost R nothing and are not counted. When R's model is loaded, only grants on
it can delay R, only they are counted, and `WaitingQueue.first` serves the oldest due one first. ∎
"""

from __future__ import annotations

from appliance.scheduler.book import Book
from appliance.scheduler.instances import Held, Instance
from appliance.scheduler.values import Grant, Preempt, ResidentState
from appliance.scheduler.waiting import Line, Waiting
from appliance.types import Priority


def grant_all(book: Book, now_s: float) -> bool:
    """Fills free slots; True if anything was granted."""
    if book.draining:
        return False
    granted = False
    barrier, ready = _barrier(book, now_s), book.ready()
    if book.full_behind == (book.events, barrier, ready):
        return False
    lines = book.queue.lines
    delayed: dict[str, bool] = {}  # grants end no load's delay, nor begin one
    for instance in ready:
        while instance.slots > len(instance.leases):
            line = lines.get(instance.model)
            waiting = None if line is None else _next(line, barrier)
            if waiting is None:
                break
            _grant(book, instance, waiting, delayed, now_s)
            barrier = _barrier(book, now_s)
            granted = True
    if not granted:
        book.full_behind = book.events, barrier, ready
    return granted


def preempt_for_urgent(book: Book, now_s: float) -> None:
    """Cuts background steps where an interactive one waits for a slot on the same instance."""
    if not book.queue.has_interactive:
        return
    for instance in book.ready():
        if instance.slots_free > 0:
            continue
        first = book.queue.first(instance.model)
        if first is None or first.step.priority is not Priority.INTERACTIVE:
            continue
        if any(held.preempted for held in instance.leases.values()):
            continue
        victim = max(
            (h for h in instance.leases.values() if is_preemptible(h)),
            key=lambda h: h.since_s,
            default=None,
        )
        if victim is not None:
            preempt(book, instance, victim, f"{first.step.request_id} is interactive", now_s)


def is_preemptible(held: Held) -> bool:
    return held.step.preemptible and held.step.priority is Priority.BACKGROUND


def preempt(book: Book, instance: Instance, held: Held, reason: str, now_s: float) -> None:
    """Asks for a lease back; the slot is free when its holder releases it."""
    if held.preempted:
        return
    held.preempted = True
    book.effects.append(Preempt(held.lease_id, reason))
    ran_s = round(now_s - held.since_s, 3)
    book.record(
        now_s, "preempt", held.step.request_id, model=instance.model, ran_s=ran_s, why=reason
    )


def _barrier(book: Book, now_s: float) -> Waiting | None:
    """The oldest due request for whose model no room is being made."""
    for line in book.queue.due_lines():
        if book.can_be_delayed(line.oldest.model, now_s):
            return line.oldest
    return None


def _next(line: Line, barrier: Waiting | None) -> Waiting | None:
    if barrier is None or _may_pass(line.first, barrier):
        return line.first
    return line.oldest if _may_pass(line.oldest, barrier) else None


def _may_pass(waiting: Waiting, barrier: Waiting) -> bool:
    return waiting.seq <= barrier.seq or waiting.step.priority < barrier.step.priority


def _grant(
    book: Book, instance: Instance, waiting: Waiting, delayed: dict[str, bool], now_s: float
) -> None:
    assert instance.state is ResidentState.READY
    step = waiting.step
    lease_id = book.fresh("lease")
    queue_s = now_s - waiting.since_s
    load_s = max(instance.ready_s - max(instance.started_s, waiting.since_s), 0.0)
    instance.hold(Held(lease_id, step, now_s, waiting.cost_s))
    book.leases[lease_id] = instance
    book.handovers.begun(step.agent, book.models[instance.model].service_s, now_s)
    book.queue.granted(waiting)
    for line in book.queue.passed_by(waiting):
        model = line.oldest.model
        is_delayed = delayed.get(model)
        if is_delayed is None:
            is_delayed = delayed[model] = book.can_be_delayed(model, now_s)
        if is_delayed or model == waiting.model:
            book.queue.count_overtaken(waiting, line)
    book.effects.append(
        Grant(step.request_id, lease_id, instance.instance_id, instance.model, queue_s, load_s)
    )
    book.record(
        now_s,
        "grant",
        step.request_id,
        agent=step.agent,
        model=instance.model,
        instance=instance.instance_id,
        queue_s=round(queue_s, 6),
        load_s=round(load_s, 6),
        overtaken=waiting.overtaken,
    )
