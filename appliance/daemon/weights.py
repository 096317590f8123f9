"""Files of models that appear, change or are fetched while the daemon runs.

A model whose file is missing or cut short is refused until something changes; here it is noticed
that something did. What is counted is a file's identity (device, inode, size, time of change), not
its content: reading gigabytes to learn that nothing happened would cost more than a needless load.

A file being written is left alone until two looks in a row see the same. A file that is gone
changes nothing: the model that was loaded from it goes on.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

LOOK_S = 2.0

Files = tuple[Path, ...]
Identity = tuple[tuple[int, ...], ...]


class Weights:
    """The identities of the files of all models. `files` says which they are, by model."""

    def __init__(self, files: Callable[[], Mapping[str, Files]]) -> None:
        self._files = files
        self._last: dict[Files, Identity] = {}
        self._settled: dict[Files, Identity] = {}

    def adopt(self) -> dict[str, str]:
        """What each model's files are, as a text that changes when they do; empty for a model
        whose files were never there. Files not seen before are taken as they are."""
        models = self._files()
        for files in models.values():
            if files not in self._settled and (found := identity(files)) is not None:
                self._settled[files] = found
        return {name: _as_text(self._settled.get(files)) for name, files in models.items()}

    def look(self) -> bool:
        """Whether files have changed since the last time, and come to rest."""
        seen = {files: found for files in self._files().values() if (found := identity(files))}
        is_changed = False
        for files, found in seen.items():
            if self._last.get(files) == found and self._settled.get(files) != found:
                self._settled[files] = found
                is_changed = True
        self._last = seen
        return is_changed

    async def changes(self) -> AsyncIterator[None]:
        """Yields whenever files have changed and come to rest."""
        while True:
            await asyncio.sleep(LOOK_S)
            if await asyncio.to_thread(self.look):
                yield


def identity(files: Files) -> Identity | None:
    """What tells these files from others, without reading them; None when one is missing."""
    try:
        found = [path.stat() for path in files]
    except OSError:
        return None
    return tuple((f.st_dev, f.st_ino, f.st_size, f.st_mtime_ns) for f in found)


def _as_text(found: Identity | None) -> str:
    return "" if found is None else hashlib.sha256(repr(found).encode()).hexdigest()[:16]
