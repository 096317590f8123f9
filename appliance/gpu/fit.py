"""Whether one configuration fits on given cards, and with how many layers on each. Pure.

Which layers go where: llama.cpp puts the last `gpu_layers` (the output head is the very last) on
the cards in their order, contiguous runs by `tensor_split`. We pass the run lengths themselves as
the split: then position i is on the first card whose cumulative count exceeds i, exactly.

Filling the cards in order, each as far as it goes, finds a split whenever one exists for that
order: a card's bytes only grow with the layers on it, so a fuller earlier card never leaves more
for the later ones (the usual exchange argument). What remains is the order, and the subset: among
runs of k neighbours by room the tightest that fits is taken when packing. Each run has card by card
no more room than the next one, so that a run fits if a tighter one does: the roomiest is tried
first, which is enough where k cards are too few, and the tightest that fits is found by halves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations

from appliance.gpu.types import HOST, DeviceShare, Footprint, KvType, Layout

IMPOSSIBLE = 1 << 60
"""A footprint that answers this many bytes says: not in this layout, on no card of any size."""
PERMUTED_CARDS = 3
"""Up to this many cards every order is tried, beyond only by falling and rising room."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What an engine offers, apart from where it runs."""

    context_window: int
    slots: int
    kv_type: KvType


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
    layers = footprint.n_layers
    layout = _layout(configuration, (), layers)
    most = {uuid: footprint.most_layers(layout, room[uuid]) for uuid in cards}
    if sum(most.values()) < layers:
        return None
    floor = _least_together(footprint, configuration)
    by_room = sorted((u for u in cards if most[u]), key=lambda uuid: (room[uuid], uuid))

    @cache
    def falling() -> int:
        """How many of all cards it takes by falling room: with fewer of them that is no use."""
        order = tuple(reversed(by_room))
        counts = _counts(footprint, configuration, room, order, layers)
        return len(cards) + 1 if counts is None else sum(1 for count in counts if count)

    def fit_on(run: Sequence[str], *, is_roomiest: bool = False) -> Fit | None:
        if sum(most[uuid] for uuid in run) < layers or sum(room[uuid] for uuid in run) < floor:
            return None
        rises_only = is_roomiest and PERMUTED_CARDS < len(run) < falling()
        orders = iter((tuple(run),)) if rises_only else _orders_of(run, room)
        fits = (
            _fill(footprint, configuration, room, order, layers, uses_all=True) for order in orders
        )
        return next((fit for fit in fits if fit is not None), None)

    for count in range(1, min(most_cards, len(by_room), layers) + 1):
        low, high = 0, len(by_room) - count
        best = fit_on(by_room[high:], is_roomiest=True)
        if best is None:
            continue
        while is_packing and low < high:
            middle = (low + high) // 2
            fit = fit_on(by_room[middle : middle + count])
            if fit is None:
                low = middle + 1
            else:
                best, high = fit, middle
        return best
    return None


def fit_partly(
    footprint: Footprint,
    configuration: Configuration,
    room: Mapping[str, int],
    cards: Sequence[str],
    *,
    most_cards: int,
) -> Fit | None:
    """As many layers as go on cards, the rest on the host; None when not one layer does.

    The roomiest cards dominate all others, so only their order is searched."""
    best: Fit | None = None
    for candidate in _orders_of(sorted(cards, key=lambda u: (-room[u], u))[:most_cards], room):
        top = footprint.n_layers - 1
        low = best.gpu_layers if best else 0

        def holds(layers: int, on: tuple[str, ...] = candidate) -> bool:
            return _counts(footprint, configuration, room, on, layers) is not None

        most = largest(low + 1, top, holds)
        if most is None:
            continue
        fit = _fill(footprint, configuration, room, candidate, most)
        if fit is not None:
            best = fit
    return best


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
    orders = _orders_of(sorted(cards, key=lambda u: (-room[u], u))[:most_cards], room)
    fits = (_fill(footprint, configuration, room, order, layers) for order in orders)
    return next((fit for fit in fits if fit is not None), None)


def fit_on_host(
    footprint: Footprint, configuration: Configuration, room: Mapping[str, int]
) -> Fit | None:
    needed = footprint.bytes_by_device(_layout(configuration, (), 0))[-1]
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


def _least_together(footprint: Footprint, configuration: Configuration) -> int:
    """What all cards together need at least: all on one card, as each further one only adds its
    own overhead. 0 where the model cannot be on one card at all."""
    layers = footprint.n_layers
    on_one = footprint.bytes_by_device(_layout(configuration, (layers,), layers))[0]
    return on_one if on_one < IMPOSSIBLE else 0


def _orders_of(run: Sequence[str], room: Mapping[str, int]) -> Iterator[tuple[str, ...]]:
    """Orders of these cards that differ in room; cards alike need no second try."""
    seen: set[tuple[int, ...]] = set()
    orders: Iterator[tuple[str, ...]] = iter((tuple(reversed(run)), tuple(run)))
    if len(run) <= PERMUTED_CARDS:
        orders = permutations(run)
    for order in orders:
        rooms = tuple(room[uuid] for uuid in order)
        if rooms not in seen:
            seen.add(rooms)
            yield order


def _fill(
    footprint: Footprint,
    configuration: Configuration,
    room: Mapping[str, int],
    cards: tuple[str, ...],
    layers: int,
    *,
    uses_all: bool = False,
) -> Fit | None:
    counts = _counts(footprint, configuration, room, cards, layers, uses_all=uses_all)
    if counts is None:
        return None
    used = tuple((uuid, count) for uuid, count in zip(cards, counts, strict=True) if count)
    cards = tuple(uuid for uuid, _ in used)
    counts = tuple(count for _, count in used)
    sizes = footprint.bytes_by_device(_layout(configuration, counts, layers))
    if sizes[-1] > room.get(HOST, 0):
        return None
    shares = [DeviceShare(uuid, size) for uuid, size in zip(cards, sizes, strict=False)]
    if sizes[-1]:
        shares.append(DeviceShare(HOST, sizes[-1]))
    return Fit(configuration, cards, counts, tuple(shares))


def _counts(
    footprint: Footprint,
    configuration: Configuration,
    room: Mapping[str, int],
    cards: tuple[str, ...],
    layers: int,
    *,
    uses_all: bool = False,
) -> tuple[int, ...] | None:
    """Fill the cards in order; None when layers are left over. `uses_all`: nor where a card stays
    empty, for whom fewer cards are known not to do."""
    counts: list[int] = []
    left = layers
    for uuid in cards:
        take = _take(footprint, configuration, tuple(counts), left, layers, room[uuid])
        if uses_all and not take:
            return None
        counts.append(take)
        left -= take
        if left == 0:
            break
    if left:
        return None
    return (*counts, *(0 for _ in cards[len(counts) :]))


def _take(
    footprint: Footprint,
    configuration: Configuration,
    before: tuple[int, ...],
    left: int,
    layers: int,
    room_bytes: int,
) -> int:
    """How many of the layers left the next card holds, those behind it standing for the rest.

    Layers are mostly alike, so the answer is close below the most that is possible, and guessed
    from the bytes of few and of many; and halved in turn, for those that are not."""

    def bytes_of(take: int) -> int:
        rest = left - take
        trial = (*before, take, rest) if rest else (*before, take)
        return footprint.bytes_by_device(_layout(configuration, trial, layers))[len(before)]

    most = min(left, footprint.most_layers(_layout(configuration, (), layers), room_bytes))
    if not most:
        return 0
    most_bytes = bytes_of(most)
    if most_bytes <= room_bytes:
        return most
    least_bytes = bytes_of(1) if most > 1 else most_bytes
    if least_bytes > room_bytes:
        return 0
    low, high, halves = 1, most, False
    while high - low > 1:
        share = (room_bytes - least_bytes) / (most_bytes - least_bytes)
        middle = (low + high) // 2 if halves else low + int(share * (high - low))
        middle = min(max(middle, low + 1), high - 1)
        size = bytes_of(middle)
        if size <= room_bytes:
            low, least_bytes = middle, size
        else:
            high, most_bytes = middle, size
        halves = not halves
    return low


def _layout(configuration: Configuration, counts: Sequence[int], layers: int) -> Layout:
    return Layout(
        configuration.context_window,
        configuration.slots,
        configuration.kv_type,
        layers,
        tuple(float(count) for count in counts),
    )
