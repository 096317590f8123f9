"""The KV cache as the loop sees it: start a prompt as far along as anything allows, give room.

Joins three things: `Sequences` decides where a prompt starts, `Context` moves the cells, and
`ParkingLot` keeps what has to leave. A prompt starts from the longest of: an idle sequence, a copy
of another's beginning, a parked state. Whatever cannot be cut, copied or restored is recomputed;
nothing here is needed for an answer to be right.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.engines.llamacpp.binding import Context
from appliance.engines.llamacpp.parking import MIN_PARK_TOKENS, ParkingLot
from appliance.engines.llamacpp.sequences import MemoryKind, Resident, Sequences, Start, Wait

RESTORE_WORTH_TOKENS = 32
"""A parked state must bring this many tokens more than what is resident: reading it costs about
as much as decoding a few dozen."""


class KvCache:
    """Owns the context's memory. Sequence ids are given by `begin` and taken back by `release`."""

    def __init__(
        self, context: Context, lot: ParkingLot, *, sequences: int, kind: MemoryKind
    ) -> None:
        self._context = context
        self._lot = lot
        self._kind = kind
        self._sequences = Sequences(sequences, kind)

    def begin(
        self, tokens: Sequence[int], adapter: str | None, cache_key: str | None
    ) -> tuple[int, int] | None:
        """A sequence for this prompt, and how many of its tokens are already in it (at most all
        but one). None: not now, because nothing is free or another is just prefilling the same."""
        found = self._find(tokens, adapter, cache_key)
        if isinstance(found, Wait):
            return None
        parked = self._best_parked(tokens, adapter)
        if parked is not None and parked[1] >= found.common + RESTORE_WORTH_TOKENS:
            common = self._restore(found, parked[0], parked[1])
            if common:
                return self._occupy(found, common, tokens, adapter, cache_key)
            # Trying has changed what is resident.
            found = self._find(tokens, adapter, cache_key)
            if isinstance(found, Wait):
                return None
        return self._occupy(found, self._copy(found), tokens, adapter, cache_key)

    def begin_anew(
        self, tokens: Sequence[int], adapter: str | None, cache_key: str | None
    ) -> tuple[int, int] | None:
        """The same, in a cache that is empty: every idle conversation is parked, and nothing of the
        prompt is taken from elsewhere. Where its cells lie and which of them were read together
        decides how sums are rounded, so only this gives the same answer again for a seed. To be
        called while nothing runs."""
        while self.make_room():
            pass
        found = self._find(tokens, adapter, cache_key)
        if isinstance(found, Wait):
            return None
        self._clear(found)
        return self._occupy(found, 0, tokens, adapter, cache_key)

    def advance(self, sequence: int, in_kv: int) -> None:
        self._sequences.advance(sequence, in_kv)

    def release(self, sequence: int, tokens: Sequence[int], now_s: float) -> None:
        """The answer ended with `tokens` in the cache; they stay until someone needs the room, or
        they have been in the way of others for too long."""
        self._sequences.release(sequence, tokens, now_s)

    def thin_out(self, now_s: float) -> None:
        """To be called while answers run: park one conversation that slows them down for nothing.
        A recurrent state is in nobody's way; what RAM cannot take costs more than it gains."""
        resident = None if self._kind.is_recurrent else self._sequences.in_the_way(now_s)
        if resident is None:
            return
        if self._lot.has_ram_for(self._context.state_bytes(resident.sequence)):
            self._evict(resident)
        else:
            self._sequences.let_lie(resident)

    def checkpoint(self, sequence: int) -> None:
        """Park a copy of a running sequence as it is now, for memories that cannot be cut."""
        resident = self._sequences[sequence]
        tokens = resident.tokens[: resident.in_kv]
        if not self._lot.holds(tokens, resident.adapter, whole=True):
            self._save(resident, tokens)

    def make_room(self) -> bool:
        """Park the least recently used idle conversation and free its cells. False: none is."""
        idle = self._sequences.idle
        if not idle:
            return False
        self._evict(idle[0])
        return True

    def park_idle(self) -> None:
        """Save every idle conversation, and all of RAM's to disk; the cache keeps them too."""
        for resident in self._sequences.idle:
            self._park(resident)
        self._lot.write_back()

    def close(self) -> None:
        """Park what there is, and wait until it is on disk."""
        self.park_idle()
        self._lot.close()

    def _find(
        self, tokens: Sequence[int], adapter: str | None, cache_key: str | None
    ) -> Start | Wait:
        return self._sequences.find(tokens, adapter, cache_key, self._first_held())

    def _first_held(self) -> dict[int, int]:
        """Where pruned windows begin; full attention never forgets, so there nothing is asked."""
        if not self._kind.window:
            return {}
        return {
            sequence: self._context.first_position(sequence) for sequence in self._sequences.with_kv
        }

    def _best_parked(self, tokens: Sequence[int], adapter: str | None) -> tuple[int, int] | None:
        """The entry that would bring the most tokens, and how many."""
        best: tuple[int, int] | None = None
        for number, shared in self._lot.matches(tokens, adapter).items():
            held = len(self._lot.entry(number).tokens)
            common = min(shared, len(tokens) - 1)
            first = max(0, held - self._kind.window) if self._kind.window else 0
            usable = self._kind.usable(held, first, common)
            if usable and (best is None or usable > best[1]):
                best = (number, usable)
        return best

    def _restore(self, found: Start, number: int, common: int) -> int:
        """Bring a parked state into the target, idle conversations making room for it; how many
        tokens it brought, 0 when it failed."""
        state = self._lot.read(number)
        if state is None:
            return 0
        held = len(self._lot.entry(number).tokens)
        self._clear(found)
        while not self._context.restore(found.target, state):
            self._context.forget(found.target)
            if not self.make_room():
                # Nothing else idle to leave: either running answers need the room, or the state
                # is not what the library wants. Recomputing is right in both cases.
                return 0
        if common < held and not self._context.forget(found.target, common):
            self._context.forget(found.target)
            return 0
        return common

    def _copy(self, found: Start) -> int:
        """Make the target hold the shared beginning; how many tokens that is in the end."""
        if found.source == found.target:
            resident = self._sequences[found.target]
            if found.common == resident.in_kv or self._context.forget(found.target, found.common):
                return found.common
            self._context.forget(found.target)
            return 0
        self._clear(found)
        if found.source is None:
            return 0
        self._context.share(
            found.source, found.target, -1 if self._kind.is_recurrent else found.common
        )
        return found.common

    def _clear(self, found: Start) -> None:
        """Empty the target, parking what it held of another conversation."""
        resident = self._sequences[found.target]
        if resident.in_kv:
            self._evict(resident)
        else:
            self._context.forget(found.target)

    def _occupy(
        self,
        found: Start,
        common: int,
        tokens: Sequence[int],
        adapter: str | None,
        cache_key: str | None,
    ) -> tuple[int, int]:
        start = Start(found.target, found.source, common, found.evicted)
        self._sequences.occupy(start, tokens, adapter, cache_key)
        return found.target, common

    def _evict(self, resident: Resident) -> None:
        self._park(resident)
        self._context.forget(resident.sequence)
        self._sequences.drop(resident.sequence)

    def _park(self, resident: Resident) -> None:
        tokens = resident.tokens[: resident.in_kv]
        if not self._lot.holds(tokens, resident.adapter, whole=self._kind.is_recurrent):
            self._save(resident, tokens)

    def _save(self, resident: Resident, tokens: Sequence[int]) -> None:
        if len(tokens) < MIN_PARK_TOKENS or not self._lot.is_open:
            return
        state = self._context.save(resident.sequence)
        if state:
            can_cut = not self._kind.is_recurrent and not self._kind.window
            self._lot.put(tokens, resident.adapter, state, supersede=can_cut)
