"""The next model is loaded while others still work, where the hand-overs say that it pays.

`handover` says which models may be asked for behind the agents that work or have just ended a step.
A load begun now saves whoever asks the part of it that is over by then. Into bytes that are free it
goes at once. In place of an idle model it goes where it pays in expectation, which is decided as a
race between the two: the model that is expected comes first, and saves its seconds, as it would
have taken this place anyway; or the model that left comes first, and its reload is lost. If neither
comes by the hand-over, the forecast of both says who is back first, within the time that an idle
model lasts at all. A preload has to save more than the loss times a factor, and a part of its load
on top: a forecast is no promise, and a load for nothing is not nothing.

Nothing that works, is waited for, is pinned or is to stay loaded makes way. Nothing is reserved
either: the victims leave, and if somebody else needs the bytes by the time they are back, he has
them, and the preload is forgotten. While it loads it is a guess like any other (`refill`): cut
short by the first who needs its place. One at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp

from appliance.scheduler import best
from appliance.scheduler.book import Book
from appliance.scheduler.eviction import Candidate
from appliance.scheduler.handover import Expected
from appliance.scheduler.instances import Instance, ModelState
from appliance.scheduler.values import Fit

_TRIED = 2
"""Models for which room is sought at one event: bounds the cost of a decision."""

_LEAST_CHANCE = 0.1
"""Rarer hand-overs are not acted upon, not even where memory is free: `refill` knows better."""

_GAIN = 1.5
"""What it has to save for each second that it costs others: all of these numbers are forecasts."""

_LOAD_SHARE = 0.1
"""Of a load, what it has to save at least beyond what it costs others."""

_OVERDUE = 2.0
"""Times the seconds in which a request was expected, after which it is not any more."""

_LASTS = 30.0
"""Loads, one after the other, that an idle model outlasts about: who is back later comes too late
to count."""


@dataclass(frozen=True, slots=True)
class Preload:
    """A model worth loading now, into free bytes or in place of these, and the seconds of waiting
    that this is expected to save and to cost."""

    state: ModelState
    expected: Expected
    fit: Fit
    victims: tuple[Instance, ...]
    saved_s: float
    lost_s: float


def choose(book: Book, now_s: float) -> Preload | None:
    """What to load before it is asked for; asked where nobody waits for a load and none runs."""
    absent = {
        name: state
        for name, state in book.models.items()
        if state.current is None
        and state.in_use
        and state.size_bytes > 0
        and state.spec.needs_memory
        and book.may_load(state, now_s)
        and not state.breaker.broken
    }
    if not absent:
        return None
    likely = [
        (_saved_s(expected, absent[model].load_s), model, expected)
        for model, expected in _soonest(book, absent, now_s).items()
        if expected.chance + expected.later_chance >= _LEAST_CHANCE
    ]
    likely.sort(key=lambda one: (one[1] != book.room_made_for, -one[0], one[1]))
    for saved_s, model, expected in likely[:_TRIED]:
        state = absent[model]
        fit = best.place(book, state, book.open_free())
        if isinstance(fit, Fit):
            return Preload(state, expected, fit, (), saved_s, 0.0)
        if saved_s > _LOAD_SHARE * state.load_s:
            found = _in_place_of_others(book, state, expected, now_s)
            if found is not None:
                return found
    return None


def decide(book: Book, found: Preload, now_s: float) -> None:
    """Notes the decision, with the numbers that decided it."""
    expected = found.expected
    book.record(
        now_s,
        "preload",
        found.state.spec.name,
        after_agent=expected.agent,
        chance=round(expected.chance, 3),
        in_s=round(expected.in_s, 1),
        later_chance=round(expected.later_chance, 3),
        later_s=round(expected.later_s, 1),
        saved_s=round(found.saved_s, 3),
        lost_s=round(found.lost_s, 3),
        saves=round(book.tally.saves, 3),
        costs=round(book.tally.costs, 3),
        in_place_of=[victim.model for victim in found.victims],
    )
    for victim in found.victims:
        book.record(
            now_s,
            "make_way",
            victim.model,
            instance=victim.instance_id,
            for_model=found.state.spec.name,
            next_use_s=round(book.next_use_s(victim.model, now_s), 3),
            reload_s=round(book.models[victim.model].load_s, 3),
        )
    book.tally.began(
        found.state.spec.name,
        found.state.load_s,
        [victim.model for victim in found.victims],
        found.saved_s,
        found.lost_s,
        now_s,
    )


def keep(found: Preload, now_s: float) -> None:
    """It loads: until the request is overdue it is worth what was expected of it, or it would be
    the first to go."""
    instance, expected = found.state.current, found.expected
    assert instance is not None
    instance.ahead_rate = expected.rate
    _, in_s = max(expected.ways)
    instance.ahead_until_s = now_s + _OVERDUE * in_s


def _in_place_of_others(
    book: Book, state: ModelState, expected: Expected, now_s: float
) -> Preload | None:
    idle = {
        i.model: i
        for i in book.ready()
        if not (i.leases or i.spec.pinned or book.models[i.model].wanted)
        and i.model not in book.queue.lines
    }
    book.forecast.prepare(idle, now_s)
    coming = _soonest(book, idle, now_s)
    rates = {model: _rate(book, model, coming, now_s) for model in idle}
    candidates = [
        Candidate(
            i.instance_id, held, rates[model] * book.models[model].load_s / sum(held.values())
        )
        for model, i in idle.items()
        if (held := book.ledger.held_by(i.instance_id))
    ]
    if not candidates or not best.fits(book, state, book.freed(idle.values())):
        return None
    found = best.make_way(book, state, candidates)
    if found is None:
        return None
    fit, victims = found
    own_rate = 1 / book.next_use_s(state.spec.name, now_s)
    saved_s, lost_s = _race(
        expected, state.load_s, own_rate,
        [(rates[v.model], book.models[v.model].load_s) for v in victims],
    )  # fmt: skip
    # The quotient counts twice: what was loaded for nothing also kept a place from what was used.
    belief, cost = book.tally.saves**2, _GAIN * book.tally.costs * lost_s
    if belief * saved_s < cost + _LOAD_SHARE * state.load_s:
        return None
    return Preload(state, expected, fit, tuple(victims), saved_s, lost_s)


def _race(
    expected: Expected, load_s: float, own_rate: float, others: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """Seconds of waiting saved and lost; `others`: the victims' rates and reload seconds."""
    rate = sum(other for other, _ in others)
    reload_s = sum(seconds for _, seconds in others)
    saved_s = lost = 0.0
    neither = 1.0
    for chance, in_s in expected.ways:
        is_first = exp(-in_s * rate)
        saved_s += chance * is_first * min(in_s, load_s)
        lost += chance * (1 - is_first)
        neither -= chance
    ends = rate + own_rate + 1 / (_LASTS * load_s)
    saved_s += neither * own_rate / ends * load_s
    lost += neither * rate / ends
    return saved_s, lost * reload_s


def _soonest(book: Book, models: Iterable[str], now_s: float) -> Mapping[str, Expected]:
    """Of what may be asked for behind several agents, the soonest."""
    soonest: dict[str, Expected] = {}
    for expected in book.handovers.expected(frozenset(models), now_s):
        known = soonest.get(expected.model)
        if known is None or expected.rate > known.rate:
            soonest[expected.model] = expected
    return soonest


def _rate(book: Book, model: str, coming: Mapping[str, Expected], now_s: float) -> float:
    """Uses per second by the forecast or by a hand-over, whichever says more."""
    rate = 1 / max(book.next_use_s(model, now_s), 1e-3)
    return max(rate, coming[model].rate) if model in coming else rate


def _saved_s(expected: Expected, load_s: float) -> float:
    return sum(chance * min(in_s, load_s) for chance, in_s in expected.ways)
