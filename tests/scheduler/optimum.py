"""What a scheduler that knows the whole future could have held on the same machine.

`packing` bounds what can be held at one instant, as if models moved between cards in no time. Here
is the best *schedule*: it knows every request, death, change of configuration and turn of the other
program of a run beforehand, and lives by the machine's physics:

- Who works is held: from the beginning of the load that the step needs (`load_s` before its grant)
  to its end, at the very moments at which it worked in the run; on either card, never moved.
- Bytes of who leaves, or dies, are nobody's for `RETURN_S`, the mean of what the machine draws: the
  draws that its own acts cause are all that even this scheduler does not know.
- A worker that dies in the run dies here if it is held. A model that changed its size must be
  loaded anew; a step that still works on the old one keeps those bytes. Neither comes back sooner
  than its bytes do.
- Nobody holds more on a card than total less reserve less the other program's true use, but for the
  bytes of those who work, where these alone were more in the run.

Left out, all in its favour: a worker takes up to a second to start before it has bytes, loads on
one card may overlap, and what nobody ever asked for is held like anything else.

It is found by dynamic programming: a state says for each of the models on which card it is, if any;
time goes in steps of `RETURN_S`. In a step, first some leave (their bytes still count on the card),
what stays is credited, then others come into what is free. The best way to each state is kept, so
the value is exact for the grid. Any schedule can be put on the grid by rounding all its moments
down, bytes coming and bytes going alike: then what is on a card during a step is what was there at
the step's end, so it fits, and over where the grid begins nothing is won or lost on average. The
mean over such beginnings is therefore no less than what any schedule can hold (they differ by a
tenth of a per cent).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

RETURN_S = 1.0
"""Half of `machine.LAG_S`: bytes come back up to that late, each delay as likely as another."""

_MIB = 1 << 20
_NEVER = -(1 << 30)
"""Worth of a state that cannot be; far from the limit of 32 bits, which are fast."""
_NO_CARD = 1 << 26
"""MiB of a model that is not configured: one exceeds any card, and eight are less than 32 bits."""


@dataclass(frozen=True, slots=True)
class Held:
    """A worker was held for a step: from the beginning of a load that ends at the grant."""

    model: str
    version: str
    card: int
    bytes_: int
    since_s: float
    until_s: float


@dataclass(slots=True)
class Course:
    """What happened in a run, whatever the scheduler did about it, and which steps it served."""

    rooms: list[tuple[float, tuple[int, ...]]] = field(default_factory=list)
    """Bytes of each card that were left beside the other program and the reserve, since then."""
    models: list[tuple[float, Mapping[str, tuple[str, int]]]] = field(default_factory=list)
    """What was configured since then: each model's version and true bytes."""
    deaths: list[tuple[float, str]] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    end_s: float = 0.0


def most_byte_s(course: Course, grid_from_s: float = 0.0) -> float:
    """The most bytes times seconds that a schedule holds over the run."""
    names = sorted({name for _, models in course.models for name in models})
    states = _States(names)
    kept_s = 0.0  # MiB times steps that are no longer in `worth`
    worth = states.empty()
    for step in _steps(course, grid_from_s):
        np.minimum(worth, states.limit(step.sizes, step.rooms), out=worth)
        worth = states.with_fewer(worth)
        states.require(worth, present=step.busy, absent=step.leaves)
        worth += states.total(step.sizes)
        best = int(worth.max())
        assert best > _NEVER // 2, "the steps that the run served can be served"
        worth -= best
        kept_s += best + step.stray_mib
        worth = states.with_more(worth)
    return kept_s * _MIB * RETURN_S


class _States:
    """Arrays over all ways to put models on no card, the first or the second."""

    def __init__(self, names: list[str]) -> None:
        self._axis = {name: axis for axis, name in enumerate(names)}
        self._shape = (3,) * len(names)
        self._limits: dict[tuple[int, ...], npt.NDArray[np.int32]] = {}
        self._sizes: Mapping[str, int] = {}
        self._on: list[npt.NDArray[np.int32]] = []
        self._total = np.zeros(self._shape, dtype=np.int32)

    def empty(self) -> npt.NDArray[np.int32]:
        worth = np.full(self._shape, _NEVER, dtype=np.int32)
        worth[(0,) * len(self._shape)] = 0
        return self.with_more(worth)

    def total(self, sizes: Mapping[str, int]) -> npt.NDArray[np.int32]:
        self._measure(sizes)
        return self._total

    def limit(self, sizes: Mapping[str, int], rooms: tuple[int, ...]) -> npt.NDArray[np.int32]:
        """What a state can be worth: nothing where it exceeds a card. Models without a size are on
        none."""
        self._measure(sizes)
        found = self._limits.get(rooms)
        if found is None:
            fits = (self._on[0] <= rooms[0]) & (self._on[1] <= rooms[1])
            found = np.where(fits, -_NEVER, _NEVER).astype(np.int32)
            self._limits[rooms] = found
        return found

    def with_fewer(self, worth: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The best of the states in which the same models are at the same place, or more are."""
        for axis in range(len(self._shape)):
            out, first, second = self._along(worth, axis)
            np.maximum(out, first, out=out)
            np.maximum(out, second, out=out)
        return worth

    def with_more(self, worth: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The best of the states in which the same models are at the same place, or fewer are."""
        for axis in range(len(self._shape)):
            out, first, second = self._along(worth, axis)
            np.maximum(first, out, out=first)
            np.maximum(second, out, out=second)
        return worth

    def require(
        self, worth: npt.NDArray[np.int32], present: Iterable[str], absent: Iterable[str]
    ) -> None:
        for name in present:
            self._along(worth, self._axis[name])[0][...] = _NEVER
        for name in absent:
            _, first, second = self._along(worth, self._axis[name])
            first[...] = second[...] = _NEVER

    def _along(
        self, worth: npt.NDArray[np.int32], axis: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        by_home = np.moveaxis(worth, axis, 0)
        return by_home[0, ...], by_home[1, ...], by_home[2, ...]

    def _measure(self, sizes: Mapping[str, int]) -> None:
        if sizes is self._sizes:
            return
        self._sizes = sizes
        self._limits.clear()
        self._on = [np.zeros(self._shape, dtype=np.int32) for _ in range(2)]
        for name, axis in self._axis.items():
            size = sizes.get(name)
            for card, on in enumerate(self._on):
                used = np.zeros(3, dtype=np.int32)
                used[card + 1] = _NO_CARD if size is None else size
                on += used.reshape([3 if axis == other else 1 for other in range(len(self._axis))])
        self._total = self._on[0] + self._on[1]


@dataclass(slots=True)
class _Step:
    """One step of the grid, in MiB: the room at its end, and who works through all of it."""

    sizes: Mapping[str, int]
    rooms: tuple[int, ...]
    busy: set[str]
    leaves: set[str]
    stray_mib: int


def _steps(course: Course, grid_from_s: float) -> Iterator[_Step]:
    """The course, cut into steps."""

    def number(at_s: float) -> int:
        return max(math.floor((at_s - grid_from_s) / RETURN_S), 0)

    busy: dict[int, set[str]] = defaultdict(set)
    needs: dict[int, dict[tuple[str, str, int], int]] = defaultdict(dict)
    strays: dict[int, dict[tuple[str, str, int], int]] = defaultdict(dict)
    for part, is_stray in _parts(course):
        key, size = (part.model, part.version, part.card), part.bytes_ // _MIB
        first, last = number(part.since_s), number(part.until_s)
        if is_stray:
            for step in range(first, last):
                strays[step][key] = size
            continue
        for step in range(first, last + 1):
            needs[step][key] = size
        whole_from = max(math.ceil((part.since_s - grid_from_s) / RETURN_S), 0)
        for step in range(whole_from, last):
            busy[step].add(part.model)
    leaves: dict[int, set[str]] = defaultdict(set)
    for at_s, name in course.deaths:
        leaves[number(at_s)].add(name)
    for (_, before), (at_s, after) in pairwise(course.models):
        leaves[number(at_s)] |= {name for name in before if after.get(name) != before[name]}
    sizes_from: dict[int, Mapping[str, int]] = {}
    for at_s, models in course.models:
        from_step = number(at_s) + 1 if at_s > grid_from_s else 0
        sizes_from[from_step] = {name: size // _MIB for name, (_, size) in models.items()}
    room_from = {number(at_s): rooms for at_s, rooms in course.rooms}
    sizes: Mapping[str, int] = {}
    rooms: tuple[int, ...] = (0, 0)
    for step in range(number(course.end_s)):
        sizes, rooms = sizes_from.get(step, sizes), room_from.get(step, rooms)
        stray, need = _by_card(strays[step]), _by_card(needs[step])
        most = tuple(
            max(-(-room // _MIB) - strayed, needed)
            for room, strayed, needed in zip(rooms, stray, need, strict=True)
        )
        yield _Step(sizes, most, busy[step], leaves[step], sum(stray))


def _by_card(held: Mapping[tuple[str, str, int], int]) -> list[int]:
    on = [0, 0]
    for (_, _, card), size in held.items():
        on[card] += size
    return on


def _parts(course: Course) -> Iterator[tuple[Held, bool]]:
    """Times of work, joined where a worker's overlap; what works on after its model was changed or
    removed is a stray from then on."""
    open_: dict[tuple[str, str, int], Held] = {}
    joined: list[Held] = []
    for held in sorted(course.held, key=lambda held: held.since_s):
        key = (held.model, held.version, held.card)
        known = open_.get(key)
        if known is not None and held.since_s <= known.until_s:
            until_s = max(known.until_s, held.until_s)
            open_[key] = Held(*key, held.bytes_, known.since_s, until_s)
            continue
        if known is not None:
            joined.append(known)
        open_[key] = held
    joined += open_.values()
    for held in joined:
        key = (held.model, held.version, held.card)
        ends_s = next(
            (
                at_s
                for at_s, models in course.models
                if at_s > held.since_s and models.get(held.model, ("", 0))[0] != held.version
            ),
            math.inf,
        )
        if ends_s >= held.until_s:
            yield held, False
        else:
            yield Held(*key, held.bytes_, held.since_s, ends_s), False
            yield Held(*key, held.bytes_, ends_s, held.until_s), True
