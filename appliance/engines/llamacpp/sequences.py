"""Which tokens each sequence of the KV cache holds, and where a new prompt should start.

Sequence ids are fixed in number; each holds the KV of one conversation, running or idle. A new
prompt looks for the longest beginning already present: it continues an idle sequence in place, or
copies the beginning from another (in a unified cache that marks cells, it moves nothing), or waits
for a running one that is just prefilling the same beginning, which costs no one anything and is how
sixteen agents prefill one system prompt once.

Not every memory can be cut. A recurrent or hybrid model only has its state at the last token, so
its beginning is usable only whole. A pruned sliding window has forgotten what lies before it, so a
cut is possible only where the window before it is still held. `usable` says it honestly; what it
refuses is recomputed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from appliance.engines.llamacpp.prefix import PrefixTree

WORTH_WAITING_TOKENS = 32
"""A beginning shorter than this is prefilled at once, rather than waited for."""

IDLE_S = 1.0
"""How long an idle conversation that shares nothing may lie in the way of running ones."""


@dataclass(slots=True, eq=False)
class Resident:
    """One sequence id. `tokens[:in_kv]` is in the cache; the rest of `tokens` is on its way."""

    sequence: int
    tokens: list[int] = field(default_factory=list)
    in_kv: int = 0
    is_busy: bool = False
    adapter: str | None = None
    cache_key: str | None = None
    last_used: int = 0
    in_the_way_s: float = math.inf
    """While idle: the moment from which it is better parked (`Sequences.in_the_way`)."""


@dataclass(frozen=True, slots=True)
class MemoryKind:
    """What the model's memory allows. `window` is the sliding window's width, 0 without one."""

    is_recurrent: bool
    window: int

    def usable(self, held: int, first_held: int, common: int) -> int:
        """Of `common` shared tokens, how many another sequence may start from: all or none.

        `held` tokens are in the source's cache, of which positions from `first_held` on are
        still there.
        """
        if self.is_recurrent:
            return common if common == held else 0
        if self.window and first_held > max(0, common - self.window):
            return 0
        return common


@dataclass(frozen=True, slots=True)
class Start:
    """Run on `target` from `common` tokens, copied from `source` unless that is the target.

    `evicted` says that the target held something of another conversation, lost by this.
    """

    target: int
    source: int | None
    common: int
    evicted: bool


@dataclass(frozen=True, slots=True)
class Wait:
    """Not now: `leader` is prefilling the same beginning; or, with None, nothing is free."""

    leader: int | None


class Sequences:
    """The residents and their prefix trees (one per adapter: an adapter changes the KV)."""

    def __init__(self, count: int, kind: MemoryKind) -> None:
        self._residents = [Resident(sequence) for sequence in range(count)]
        self._trees: dict[str | None, PrefixTree] = {}
        self._kind = kind
        self._tick = 0

    def __getitem__(self, sequence: int) -> Resident:
        return self._residents[sequence]

    @property
    def with_kv(self) -> list[int]:
        return [r.sequence for r in self._residents if r.in_kv > 0]

    @property
    def idle(self) -> list[Resident]:
        """Residents with KV and no running answer, least recently used first."""
        held = [r for r in self._residents if not r.is_busy and r.in_kv > 0]
        return sorted(held, key=lambda r: r.last_used)

    def in_the_way(self, now_s: float) -> Resident | None:
        """An idle resident that had better be parked while others run; the longest overdue.

        Every decode passes over all cells up to the last one in use, masked ones too, so who lies
        idle costs everyone else time at each token: rent, in proportion to the cells that are its
        own. Parking it and reading it back is a price to be paid once, in proportion to all its
        tokens. Whoever cannot know when a conversation goes on does at most twice the best by
        leaving when the rent has come to the price: after `IDLE_S` where every cell is its own,
        hardly ever where most are shared with others.
        """
        late = [r for r in self._residents if r.in_the_way_s <= now_s and not r.is_busy]
        return min(late, key=lambda r: r.in_the_way_s, default=None)

    def let_lie(self, resident: Resident) -> None:
        """It is not to be parked before someone needs its place."""
        resident.in_the_way_s = math.inf

    def find(
        self,
        tokens: Sequence[int],
        adapter: str | None,
        cache_key: str | None,
        first_held: dict[int, int],
    ) -> Start | Wait:
        """Where a prompt should start. `first_held` gives, per sequence with a pruned window, its
        lowest position still held (absent: 0)."""
        tree = self._trees.get(adapter)
        matches = tree.matches(tokens) if tree is not None else {}
        best, best_common, leader, leader_common = None, 0, None, 0
        last_token = len(tokens) - 1
        for sequence, shared in matches.items():
            resident = self._residents[sequence]
            common = min(shared, resident.in_kv, last_token)
            usable = self._kind.usable(resident.in_kv, first_held.get(sequence, 0), common)
            better = (usable, resident.cache_key == cache_key, not resident.is_busy)
            if best is None:
                is_better = usable > 0
            else:
                is_better = better > (best_common, best.cache_key == cache_key, not best.is_busy)
            if is_better:
                best, best_common = resident, usable
            if resident.is_busy and shared > resident.in_kv:
                coming = min(shared, last_token)
                if not self._kind.is_recurrent and coming > leader_common:
                    leader, leader_common = sequence, coming
        if leader is not None and leader_common >= best_common + WORTH_WAITING_TOKENS:
            return Wait(leader)
        return self._target(best, best_common, cache_key)

    def occupy(
        self, start: Start, tokens: Sequence[int], adapter: str | None, cache_key: str | None
    ) -> None:
        """The target now runs `tokens`, with the first `start.common` of them in the cache."""
        resident = self._residents[start.target]
        self._untree(resident)
        resident.tokens = list(tokens)
        resident.in_kv = start.common
        resident.is_busy, resident.in_the_way_s = True, math.inf
        resident.adapter, resident.cache_key = adapter, cache_key
        self._touch(resident)
        self._trees.setdefault(adapter, PrefixTree()).insert(resident.sequence, resident.tokens)

    def advance(self, sequence: int, in_kv: int) -> None:
        self._residents[sequence].in_kv = in_kv

    def release(self, sequence: int, tokens: Sequence[int], now_s: float = math.inf) -> None:
        """Its answer ended: it stays, idle, with `tokens` in the cache."""
        resident = self._residents[sequence]
        self._untree(resident)
        resident.tokens = list(tokens)
        resident.in_kv = len(tokens)
        resident.is_busy = False
        self._touch(resident)
        resident.in_the_way_s = math.inf
        if tokens:
            tree = self._trees.setdefault(resident.adapter, PrefixTree())
            shared = max(tree.matches(tokens).values(), default=0)
            own = max(len(tokens) - shared, 1)
            resident.in_the_way_s = now_s + IDLE_S * len(tokens) / own
            tree.insert(sequence, resident.tokens)

    def drop(self, sequence: int) -> None:
        """Its cells are gone."""
        self.release(sequence, ())
        self._residents[sequence].cache_key = None

    def _target(self, best: Resident | None, common: int, cache_key: str | None) -> Start | Wait:
        if best is not None and not best.is_busy:
            continues = best.cache_key == cache_key and cache_key is not None
            if common == best.in_kv or continues:
                return Start(best.sequence, best.sequence, common, evicted=False)
        source = None if best is None or common == 0 else best.sequence
        empty = [r for r in self._residents if not r.is_busy and r.in_kv == 0]
        if empty:
            return Start(empty[0].sequence, source, common, evicted=False)
        victims = [r for r in self.idle if r.sequence != source] or self.idle
        if not victims:
            return Wait(None)
        target = victims[0].sequence
        return Start(target, source, common, evicted=True)

    def _untree(self, resident: Resident) -> None:
        tree = self._trees.get(resident.adapter)
        if tree is not None:
            tree.remove(resident.sequence)

    def _touch(self, resident: Resident) -> None:
        self._tick += 1
        resident.last_used = self._tick
