"""Disk space put aside, so that a full disk still lets running work be ended and recorded."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

FILE_NAME = "reserve"
RESERVE_BYTES = 4 << 20
"""About two thousand ordinary events: enough to end everything that can run at once."""


class Reserve:
    """A file of real blocks, given up when the disk is full. Used by the writer alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / FILE_NAME
        self.is_spent = True

    def spend(self) -> bool:
        """Free the space; False when it was free already."""
        if self.is_spent:
            return False
        with suppress(FileNotFoundError):
            self._path.unlink()
        self.is_spent = True
        return True

    def refill(self) -> bool:
        """Put the space aside again, if as much again stays free; True when it is there."""
        try:
            disk = os.statvfs(self._folder)
            if disk.f_bavail * disk.f_frsize < 2 * RESERVE_BYTES:
                return self._has_all()
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
            finally:
                os.close(descriptor)
        except OSError:
            self.is_spent = False
            self.spend()  # what was allocated in part
            return False
        self.is_spent = False
        return True

    def _has_all(self) -> bool:
        """Whether an earlier daemon's reserve lies there, whole."""
        with suppress(FileNotFoundError):
            self.is_spent = self._path.stat().st_blocks * 512 < RESERVE_BYTES
        return not self.is_spent
