"""Parked conversations: KV of idle sequences in host RAM, then on disk, found by token prefix.

The key is what the KV is a function of: the model (a hash over samples of its file), the build of
the library, the element type of the cache, the LoRA adapter, and the tokens themselves. A client's
cache key never decides: only equal tokens do. A file that is damaged, cut or of another model is
deleted and the prompt recomputed, because wrong KV would not fail, it would answer something else.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.engines.llamacpp import parked_file
from appliance.engines.llamacpp.prefix import PrefixTree

log = logging.getLogger(__name__)

MIN_PARK_TOKENS = 32
"""Shorter is recomputed sooner than it is read back."""

RAM_SHARE = 4
"""A state that takes more than the fourth part of RAM's budget leaves no room for others."""


@dataclass(slots=True, eq=False)
class Parked:
    """One saved sequence: its `state` in RAM, or a file at `path`, or both."""

    number: int
    adapter: str | None
    tokens: tuple[int, ...]
    size_bytes: int
    state: bytes | None
    path: Path | None
    is_being_written: bool = False


class ParkingLot:
    """Two tiers with budgets, least recently used out first. One thread uses it; a second, its
    own, writes files and only tells where. Works without a folder (RAM alone) and without RAM
    (disk alone)."""

    def __init__(
        self, model_key: str, *, folder: Path | None, ram_bytes: int, disk_bytes: int
    ) -> None:
        self._model_key = model_key
        self._folder = folder / model_key[:16] if folder is not None and disk_bytes > 0 else None
        self._ram_budget, self._disk_budget = ram_bytes, disk_bytes
        self._entries: OrderedDict[int, Parked] = OrderedDict()
        self._trees: dict[str | None, PrefixTree] = {}
        self._next_number = 0
        self._to_write: queue.SimpleQueue[Parked | None] = queue.SimpleQueue()
        self._written: queue.SimpleQueue[tuple[int, Path | None]] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        if self._folder is not None:
            self._scan(self._folder)
            self._writer = threading.Thread(
                target=self._write_all, args=(self._folder,), name="park", daemon=True
            )
            self._writer.start()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def is_open(self) -> bool:
        """Whether anything can be parked at all."""
        return self._ram_budget > 0 or self._folder is not None

    def has_ram_for(self, size_bytes: int) -> bool:
        """Whether a state so large goes to RAM beside others, rather than to disk or nowhere."""
        return size_bytes * RAM_SHARE <= self._ram_budget

    @property
    def ram_bytes(self) -> int:
        return sum(e.size_bytes for e in self._entries.values() if e.state is not None)

    def matches(self, tokens: Sequence[int], adapter: str | None) -> dict[int, int]:
        """For each entry that shares a beginning with `tokens`: how many tokens."""
        self._settle()
        tree = self._trees.get(adapter)
        return tree.matches(tokens) if tree is not None else {}

    def entry(self, number: int) -> Parked:
        return self._entries[number]

    def holds(self, tokens: Sequence[int], adapter: str | None, *, whole: bool) -> bool:
        """Whether parking `tokens` would add nothing: an entry extends it (or, with `whole`, is
        exactly it)."""
        return any(
            shared == len(tokens) and (not whole or len(self._entries[number].tokens) == shared)
            for number, shared in self.matches(tokens, adapter).items()
        )

    def put(
        self, tokens: Sequence[int], adapter: str | None, state: bytes, *, supersede: bool
    ) -> None:
        """Park a state. With `supersede`, entries that are beginnings of it go."""
        if supersede:
            for number, shared in self.matches(tokens, adapter).items():
                if shared == len(self._entries[number].tokens):
                    self._forget(number, delete=True)
        self._add(adapter, tuple(tokens), len(state), state=state)
        self._shrink_ram()

    def read(self, number: int) -> bytes | None:
        """The state of an entry, now the most recently used; None (and forgotten) when its file
        is gone, damaged or not ours."""
        self._settle()
        entry = self._entries[number]
        self._entries.move_to_end(number)
        if entry.state is not None:
            return entry.state
        assert entry.path is not None
        try:
            parsed = parked_file.parse(entry.path.read_bytes(), self._model_key)
            os.utime(entry.path)
        except OSError as error:
            log.warning("parked file %s cannot be read: %s", entry.path.name, error)
            parsed = None
        if parsed is None or (parsed[0].adapter, parsed[0].tokens) != (entry.adapter, entry.tokens):
            log.warning("parked file %s is damaged; its prompt is recomputed", entry.path.name)
            self.refuse(number)
            return None
        return parsed[1]

    def refuse(self, number: int) -> None:
        """The library does not take this state: drop it for good."""
        self._forget(number, delete=True)

    def write_back(self) -> None:
        """Begin to write all that is only in RAM; it stays in RAM as well."""
        self._settle()
        if self._writer is not None:
            for entry in self._entries.values():
                self._write(entry)

    def close(self) -> None:
        """Write all that is only in RAM, and wait for it."""
        self.write_back()
        if self._writer is not None:
            self._to_write.put(None)
            self._writer.join()
            self._writer = None

    def _add(
        self,
        adapter: str | None,
        tokens: tuple[int, ...],
        size_bytes: int,
        *,
        state: bytes | None = None,
        path: Path | None = None,
    ) -> None:
        number = self._next_number
        self._next_number += 1
        self._entries[number] = Parked(number, adapter, tokens, size_bytes, state, path)
        self._trees.setdefault(adapter, PrefixTree()).insert(number, tokens)

    def _forget(self, number: int, *, delete: bool) -> None:
        entry = self._entries.pop(number)
        self._trees[entry.adapter].remove(number)
        if delete and entry.path is not None:
            entry.path.unlink(missing_ok=True)

    def _shrink_ram(self) -> None:
        """Let the least recently used leave RAM: at once where they are (or cannot be) on disk,
        else when they are written."""
        over = self.ram_bytes - self._ram_budget
        for entry in list(self._entries.values()):
            if over <= 0:
                return
            if entry.state is None:
                continue
            over -= entry.size_bytes
            if entry.path is not None:
                entry.state = None
            elif self._writer is None:
                self._forget(entry.number, delete=False)
            else:
                self._write(entry)

    def _write(self, entry: Parked) -> None:
        if entry.path is None and not entry.is_being_written:
            entry.is_being_written = True
            self._to_write.put(entry)

    def _settle(self) -> None:
        """Take in what the writer has done."""
        settled = False
        while not self._written.empty():
            number, path = self._written.get()
            entry = self._entries.get(number)
            if entry is None:
                if path is not None:
                    path.unlink(missing_ok=True)
                continue
            entry.path, entry.is_being_written = path, False
            if path is None:
                self._forget(number, delete=False)
            settled = True
        if settled:
            self._shrink_ram()

    def _write_all(self, folder: Path) -> None:
        """The writer thread: one file after the other, then room for the next."""
        while (entry := self._to_write.get()) is not None:
            assert entry.state is not None
            path = None
            try:
                path = parked_file.write(
                    folder, self._model_key, entry.adapter, entry.tokens, entry.state
                )
                parked_file.prune(folder.parent, self._disk_budget, keep=path)
            except OSError as error:
                log.warning("a conversation could not be parked on disk: %s", error)
            self._written.put((entry.number, path))

    def _scan(self, folder: Path) -> None:
        """Index what earlier workers left here, oldest first, reading no state."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        parked_file.sweep(folder)
        for path in sorted(folder.glob("*.kv"), key=lambda p: p.stat().st_mtime):
            head = parked_file.read_head(path, self._model_key)
            if head is None:
                path.unlink(missing_ok=True)
            else:
                self._add(head.adapter, head.tokens, head.size_bytes, path=path)
