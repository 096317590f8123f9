"""Whether one configuration fits on given cards, and with how many layers on each. Pure.

Which layers go where: llama.cpp puts the last `gpu_layers` (the output head is the very last) on
the cards in their order, contiguous runs by `tensor_split`. We pass the run lengths themselves as
the split: then position i is on the first card whose cumulative count exceeds i, exactly.

`filling` says how many layers each card takes. What remains is the order, and the subset: among
runs of k neighbours by room the tightest that fits is taken when packing. Each run has card by card
no more room than the next one, so that a run fits if a tighter one does: the roomiest is tried
first, which is enough where k cards are too few, and the tightest that fits is found by halves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import permutations
from typing import TypeAlias

from appliance.gpu.filling import Configuration, Filling
from appliance.gpu.types import HOST, Footprint
from appliance.gpu.wants import DeviceShare

PERMUTED_CARDS = 3
"""Up to this many cards every order is tried, beyond only by falling and rising room."""

Split: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Which of the cards, in order, and the layers on each."""


@dataclass(frozen=True, slots=True)
class Fit:
    configuration: Configuration
    cards: tuple[str, ...]
    counts: tuple[int, ...]
    """Layers on each card; the split."""
    shares: tuple[DeviceShare, ...]

    @property
    def gpu_layers(self) -> int:
        return sum(self.counts)


def fit_on_cards(
    footprint: Footprint,
    configuration: Configuration,
    room: Mapping[str, int],
    cards: Sequence[str],
    *,
    most_cards: int,
    is_packing: bool = True,
) -> Fit | None:
    """All layers on as few cards as possible; None when no choice of `cards` holds them."""
    by_room = sorted(cards, key=lambda uuid: (room[uuid], uuid))

    def search(filling: Filling, rooms: Sequence[int]) -> list[Split]:
        runs = Runs(filling, rooms)
        fewest = runs.fewest(most_cards)
        if fewest is None:
            return []
        return [runs.tightest(fewest), fewest] if is_packing else [fewest]

    return _checked(footprint, configuration, room, by_room, search) if cards else None


def fit_partly(
    footprint: Footprint,
    configuration: Configuration,
    room: Mapping[str, int],
    cards: Sequence[str],
    *,
    most_cards: int,
) -> Fit | None:
    """As many layers as go on cards, the rest on the host; None when not one layer does."""
    roomiest = _roomiest(room, cards, most_cards)
    return _checked(footprint, configuration, room, roomiest, _partly)


def fit_exactly(
    footprint: Footprint,
    configuration: Configuration,
    room: Mapping[str, int],
    cards: Sequence[str],
    layers: int,
    *,
    most_cards: int,
) -> Fit | None:
    """So many layers on the roomiest cards, the rest on the host."""
    roomiest = _roomiest(room, cards, most_cards)
    return _checked(footprint, configuration, room, roomiest, partial(_exactly, layers=layers))


def fit_on_host(
    footprint: Footprint, configuration: Configuration, room: Mapping[str, int]
) -> Fit | None:
    needed = Filling(footprint, configuration).sizes((), 0)[-1]
    if needed > room.get(HOST, 0):
        return None
    return Fit(configuration, (), (), (DeviceShare(HOST, needed),))


def largest(low: int, high: int, holds: Callable[[int], bool]) -> int | None:
    """The largest n in [low, high] where a claim that holds only up to some n holds."""
    if low > high or not holds(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _checked(
    footprint: Footprint,
    configuration: Configuration,
    room: Mapping[str, int],
    cards: Sequence[str],
    search: Callable[[Filling, Sequence[int]], list[Split]],
) -> Fit | None:
    """The first that the search finds on these cards, with care where the very splits were seen to
    need more."""
    rooms = [room[uuid] for uuid in cards]
    for with_care in (False, True):
        filling = Filling(footprint, configuration, with_care=with_care)
        splits = search(filling, rooms)
        if not splits:
            return None
        for order, counts in splits:
            chosen = tuple([cards[n] for n in order])
            *on_cards, on_host = filling.sizes(counts, sum(counts))
            if on_host > room.get(HOST, 0):
                return None
            if any(size > room[uuid] for uuid, size in zip(chosen, on_cards, strict=True)):
                continue
            shares = [DeviceShare(uuid, size) for uuid, size in zip(chosen, on_cards, strict=True)]
            if on_host:
                shares.append(DeviceShare(HOST, on_host))
            return Fit(configuration, chosen, counts, tuple(shares))
    return None


class Runs:
    """How a model goes on runs of neighbours among cards with so much room each, rising."""

    def __init__(self, filling: Filling, rooms: Sequence[int]) -> None:
        self._filling = filling
        self._rooms = rooms
        self._sizes, self._counts = filling.bounds(rooms)

    def fewest(self, most_cards: int) -> Split | None:
        """On as few cards as possible, the roomiest that many; None where all are too few."""
        every = len(self._rooms)
        on_one = self._fill(every - 1, every)
        if on_one is not None or not self._may_hold(0, every):
            return on_one
        useful = every - self._counts.count(0)
        falling = 0
        for count in range(2, min(most_cards, useful, self._filling.layers) + 1):
            if count == PERMUTED_CARDS + 1:
                falling = self._falling(useful)
            low = every - count
            if self._may_hold(low, every):
                is_long = PERMUTED_CARDS < count < falling
                found = self._fill(low, every, rises_only=is_long)
                if found is not None:
                    return found
        return None

    def tightest(self, found: Split) -> Split:
        """On as many cards as were found to be enough, in the tightest run that is enough."""
        count = len(found[0])
        low, high = 0, len(self._rooms) - count
        while low < high:
            middle = (low + high) // 2
            better = None
            if count == 1 or self._may_hold(middle, middle + count):
                better = self._fill(middle, middle + count)
            if better is None:
                low = middle + 1
            else:
                found, high = better, middle
        return found

    def _may_hold(self, low: int, high: int) -> bool:
        return self._filling.may_hold(self._sizes[low:high], self._counts[low:high])

    def _fill(self, low: int, high: int, *, rises_only: bool = False) -> Split | None:
        orders = _orders(high - low)
        for order in orders[-1:] if rises_only else orders:
            rooms = [self._rooms[low + n] for n in order]
            counts = self._filling.fill(rooms, self._filling.layers, uses_all=True)
            if counts is not None:
                return _used([low + n for n in order], counts)
        return None

    def _falling(self, useful: int) -> int:
        """How many of all cards it takes by falling room: fewer are not tried in that order."""
        filled = self._filling.fill(self._rooms[: -useful - 1 : -1], self._filling.layers)
        return useful + 1 if filled is None else sum(1 for count in filled if count)


def _partly(filling: Filling, rooms: Sequence[int]) -> list[Split]:
    """The roomiest cards dominate all others, so only their order is searched."""
    best: Split | None = None
    most = 0
    for order in _orders(len(rooms)):
        ordered = [rooms[n] for n in order]

        def holds(layers: int, ordered: Sequence[int] = ordered) -> bool:
            return filling.fill(ordered, layers) is not None

        more = largest(most + 1, filling.layers - 1, holds)
        counts = None if more is None else filling.fill(ordered, more)
        if more is not None and counts is not None:
            best, most = _used(order, counts), more
    return [] if best is None else [best]


def _exactly(filling: Filling, rooms: Sequence[int], layers: int) -> list[Split]:
    for order in _orders(len(rooms)):
        counts = filling.fill([rooms[n] for n in order], layers)
        if counts is not None:
            return [_used(order, counts)]
    return []


def _roomiest(room: Mapping[str, int], cards: Sequence[str], count: int) -> list[str]:
    return sorted(cards, key=lambda uuid: (-room[uuid], uuid))[:count]


def _used(order: Sequence[int], counts: Sequence[int]) -> Split:
    if 0 not in counts:
        return tuple(order), tuple(counts)
    used = [n for n, count in enumerate(counts) if count]
    return tuple([order[n] for n in used]), tuple([counts[n] for n in used])


@cache
def _orders(count: int) -> tuple[tuple[int, ...], ...]:
    """Orders of so many cards, the given one last where not all are tried."""
    if count <= PERMUTED_CARDS:
        return tuple(permutations(range(count)))
    rising = tuple(range(count))
    return rising[::-1], rising
