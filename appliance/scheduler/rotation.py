"""How long until a place is free for a model that has none: the turns of those who have one.

Where more models are wanted than fit, they take turns (`patience`), and a wait is mostly other
models' turns: one step of what works now would be too little by ten times. So each busy instance is
asked how much of its turn is left, by both budgets of a turn, and whoever waits longer than we do
comes before us, one after the other over all places.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

from appliance.scheduler.book import Book, Contention
from appliance.scheduler.instances import Instance, ModelState
from appliance.scheduler.values import DEFAULT_WEIGHT
from appliance.scheduler.waiting import Line


@dataclass(frozen=True, slots=True)
class Rotation:
    """The places and their turns at one moment. `left_s`: of each place that may ever be taken,
    the soonest first; empty where one is idle. `seqs`: of the oldest of each line without a
    place, in order."""

    left_s: tuple[float, ...]
    turn_s: float
    seqs: tuple[int, ...]

    def room_s(self, line: Line | None, load_s: float) -> float:
        """Seconds until the place of this line is free; None: of somebody who comes now."""
        if not self.left_s:
            return 0.0
        ahead = len(self.seqs) if line is None else bisect_left(self.seqs, line.oldest.seq)
        rounds, place = divmod(ahead, len(self.left_s))
        after_turns_s = self.left_s[place] + rounds * (self.turn_s + load_s)
        after_loads_s = self.left_s[0] + ahead * load_s  # a device loads one model at a time
        return max(after_turns_s, after_loads_s)


def rotation(book: Book, now_s: float) -> Rotation:
    """Turns as they stand, for somebody who comes on top of those who wait."""
    lines, found = book.queue.lines, book.contention()
    ready = [instance for instance in book.ready() if not instance.spec.pinned]
    if any(_is_idle(book, instance, now_s) for instance in ready):
        return Rotation((), 0.0, ())
    ours = Contention(found.weight + DEFAULT_WEIGHT, found.models + 1)
    oldest = [
        line.oldest
        for name, line in lines.items()
        if book.models[name].current is None and book.models[name].claim is None
    ]
    since_s = min((waiting.since_s for waiting in oldest), default=now_s)
    left, turns = [], []
    for instance in ready:
        turn_s = _turn_s(book, book.models[instance.model], instance.clients_weight, ours)
        turns.append(turn_s)
        left.append(_left_s(book, instance, turn_s - (now_s - max(since_s, instance.ready_s))))
    for state, loading_s in _coming(book, now_s):
        line = lines.get(state.spec.name)
        turn_s = _turn_s(book, state, DEFAULT_WEIGHT if line is None else line.weight, ours)
        turns.append(turn_s)
        left.append(loading_s + turn_s)
    mean_s = sum(turns) / len(turns) if turns else 0.0
    return Rotation(tuple(sorted(left)), mean_s, tuple(sorted(waiting.seq for waiting in oldest)))


def _coming(book: Book, now_s: float) -> Iterator[tuple[ModelState, float]]:
    """The models whose turn begins next, and in how many seconds, as far as their loads tell."""
    for instance in book.starting.values():
        if instance.model in book.models:
            state = book.models[instance.model]
            yield state, max(state.load_s - (now_s - instance.started_s), 0.0)
    for state in book.claiming.values():
        yield state, state.load_s


def _turn_s(book: Book, state: ModelState, weight: float, contention: Contention) -> float:
    """By the seconds after which a swap pays, or by the steps that may go before a waiter's."""
    policy, share = book.policy, contention.share(weight)
    seconds = policy.swap_patience_s(2 * state.load_s) * share * (contention.models + 1)
    at_once = max(min(state.spec.slots, round(weight)), 1)
    steps = max(policy.max_overtaken * share, 1.0)
    return min(seconds, steps * state.service_s / at_once)


def _is_idle(book: Book, place: Instance, now_s: float) -> bool:
    """Gives way at once: nobody works there, waits for it, or is about to come back."""
    at_work = place.leases or place.model in book.queue.lines
    return not at_work and now_s - place.idle_since_s >= book.policy.hold_s


def _left_s(book: Book, place: Instance, left_s: float) -> float:
    """Of the turn that would last so long: it ends early where its agents have no more to ask."""
    state = book.models[place.model]
    step_s = state.service_s if place.leases else 0.0
    goes_on = 1.0 if place.model in book.queue.lines else state.keeps_coming
    return step_s + goes_on * max(left_s - step_s, 0.0)
