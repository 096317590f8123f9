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

Fitting: TypeAlias = Callable[[Mapping[str, int]], bool]
"""Whether the model in question has a place among free bytes per device."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An instance that may go. `density`: expected reload seconds per second and GiB."""

    instance_id: str
    bytes_by_device: Mapping[str, int]
    density: float


def choose_victims(
    free: Mapping[str, int], candidates: Sequence[Candidate], fits: Fitting
) -> list[Candidate]:
    """Of candidates who together make room those that are needed."""
    ranked = sorted(candidates, key=lambda c: (c.density, c.instance_id))
    chosen = ranked[: _shortest_prefix(free, ranked, fits)]
    room = freed(free, chosen)
    for candidate in chosen[-2::-1]:
        less = dict(room)
        for device, amount in candidate.bytes_by_device.items():
            less[device] -= amount
        if fits(less):
            room = less
            chosen.remove(candidate)
    return chosen


def freed(free: Mapping[str, int], victims: Sequence[Candidate]) -> dict[str, int]:
    """The free bytes once these are gone."""
    total = dict(free)
    for victim in victims:
        for device, amount in victim.bytes_by_device.items():
            total[device] = total.get(device, 0) + amount
    return total


def _shortest_prefix(free: Mapping[str, int], ranked: Sequence[Candidate], fits: Fitting) -> int:
    low, high = 1, len(ranked)
    while low < high:
        middle = (low + high) // 2
        if fits(freed(free, ranked[:middle])):
            high = middle
        else:
            low = middle + 1
    return high
