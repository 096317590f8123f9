"""Who has to go so that a model fits: the cheapest set of idle instances, by value density.

An instance is worth the seconds its reload would cost, per second until it is expected to be
wanted again, per byte it holds (GreedyDual-Size's density with a forecast in place of a clock).
Devices make it a covering problem: bytes on the wrong card do not help. Exhaustive search is out of
the question at 50 instances, so: add victims in order of rising density until the placer finds room
(fits are monotone in free bytes, so a bisection finds the shortest such prefix), then give back,
dearest first, each one without whom it still fits. The result is minimal: every victim is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from appliance.scheduler.values import Fit, Misfit

Placing: TypeAlias = Callable[[Mapping[str, int]], Fit | Misfit]
"""Where the model in question goes among free bytes per device."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An instance that may go. `density`: expected reload seconds per second and GiB."""

    instance_id: str
    bytes_by_device: Mapping[str, int]
    density: float


def choose_victims(
    free: Mapping[str, int], candidates: Sequence[Candidate], place: Placing
) -> tuple[Fit, list[Candidate]] | None:
    """The fit and the victims it needs; None when not even all of them make room."""
    ranked = sorted(candidates, key=lambda c: (c.density, c.instance_id))
    shortest = _shortest_prefix(free, ranked, place)
    if shortest is None:
        return None
    fit, count = shortest
    chosen = ranked[:count]
    for candidate in reversed(ranked[: count - 1]):
        fewer = [c for c in chosen if c is not candidate]
        trial = place(_with_freed(free, fewer))
        if isinstance(trial, Fit):
            fit, chosen = trial, fewer
    return fit, chosen


def _shortest_prefix(
    free: Mapping[str, int], ranked: Sequence[Candidate], place: Placing
) -> tuple[Fit, int] | None:
    low, high = 1, len(ranked)
    best = place(_with_freed(free, ranked)) if ranked else None
    if not isinstance(best, Fit):
        return None
    while low < high:
        middle = (low + high) // 2
        trial = place(_with_freed(free, ranked[:middle]))
        if isinstance(trial, Fit):
            best, high = trial, middle
        else:
            low = middle + 1
    return best, high


def _with_freed(free: Mapping[str, int], victims: Sequence[Candidate]) -> dict[str, int]:
    total = dict(free)
    for victim in victims:
        for device, amount in victim.bytes_by_device.items():
            total[device] = total.get(device, 0) + amount
    return total
