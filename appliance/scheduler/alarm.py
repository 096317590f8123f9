"""When to look again though nothing happens: at what moment time alone changes a decision."""

from __future__ import annotations

import math

from appliance.scheduler.book import Book


def next_tick_s(book: Book, next_deadline_s: float, now_s: float) -> float:
    """The soonest such moment; infinite where there is none."""
    soonest = min(book.foreign.next_fall_s(), _next_turn_s(book, now_s), next_deadline_s)
    someone_waits = len(book.queue) > 0
    for instance in book.ready():
        if instance.leases:
            continue
        held_until_s = instance.idle_since_s + book.policy.hold_s
        if someone_waits and now_s < held_until_s < soonest:
            soonest = held_until_s
        if instance.spec.idle_unload_s is not None:
            soonest = min(soonest, instance.idle_since_s + instance.spec.idle_unload_s)
    return soonest


def _next_turn_s(book: Book, now_s: float) -> float:
    """When the turn of a model that waits for a place may come: one that may be tried again, or
    that was patient enough by then. Not oftener than each second, which is the least answer."""
    soonest, least_s = math.inf, now_s + 1.0
    models, per_load = book.models, book.policy.swap_patience_s(1.0)
    likely = book.ready()[:1]
    victim_s = sum(models[victim.model].load_s for victim in likely)
    contention = book.contention()
    share = contention.share(sum(victim.clients_weight for victim in likely))
    part = share * (contention.models + 1)
    for model, line in book.queue.lines.items():
        state = models[model]
        if state.current is not None or state.claim is not None:
            continue
        turn_s = state.breaker.retry_at_s
        if turn_s <= now_s:
            turn_s = line.oldest.since_s + per_load * (state.load_s + victim_s) * part
            if turn_s < least_s:
                turn_s = least_s
        if turn_s < soonest:
            soonest = turn_s
            if turn_s <= least_s:
                break
    return soonest
