"""The files of a model that waits for its place come into the page cache meanwhile.

The model before it still works, so neither disk nor host RAM are what one waits for; a load that
finds its file in memory takes the time of the copy to the card. The kernel is only advised: what it
read is the first it gives up when programs need the memory. A model that is larger than what RAM
could take without giving up anything but cache is left alone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from appliance.gpu.host import host_device

PIECE_BYTES = 64 << 20
"""Advised at once: the kernel takes about as long to accept it as the disk to read it."""


def free_ram_bytes() -> int:
    return host_device().free_bytes


async def read_ahead(files: Sequence[Path], free_bytes: Callable[[], int] = free_ram_bytes) -> int:
    """How many bytes the kernel was asked to read. Files that cannot be opened are nobody's
    business here: the load will say so."""
    sizes = await asyncio.to_thread(_sizes, files)
    if sum(sizes.values()) > await asyncio.to_thread(free_bytes):
        return 0
    return sum([await _advise(path, size) for path, size in sizes.items()])


def _sizes(files: Sequence[Path]) -> dict[Path, int]:
    return {path: path.stat().st_size for path in files if path.is_file()}


async def _advise(path: Path, size: int) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        for offset in range(0, size, PIECE_BYTES):
            await asyncio.to_thread(
                os.posix_fadvise, descriptor, offset, PIECE_BYTES, os.POSIX_FADV_WILLNEED
            )
    except OSError:
        return 0
    finally:
        os.close(descriptor)
    return size
