"""Tapes as the daemon reads them: what a courier wrote down of an answer, and is still writing."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUFFIX = ".tape"
HEADER_MAX_BYTES = 4_096
PIECE_BYTES = 1 << 16
LOOK_S = 0.02
"""Between two looks at a tape on which an answer is still coming in."""


@dataclass(frozen=True, slots=True)
class Tape:
    """One answer on tape. `turn_id` and `match` say whose it is and to which very request."""

    path: Path
    turn_id: str
    model: str
    match: str
    pid: int
    answer_at: int

    @property
    def name(self) -> str:
        return self.path.stem

    def cut(self) -> None:
        """End the courier that is still writing it, if one is. Its number may be somebody else's
        by now; holding the process first and finding the tape locked after shows it is not."""
        try:
            pid_fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self._is_written():
                signal.pidfd_send_signal(pid_fd, signal.SIGTERM)
        except ProcessLookupError:
            return
        finally:
            os.close(pid_fd)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The bytes of the answer, as they came and while they come."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.answer_at)
            while True:
                more = await asyncio.to_thread(self._is_written)  # before reading: none is missed
                piece = await asyncio.to_thread(file.read, PIECE_BYTES)
                if piece:
                    yield piece
                elif not more:
                    return
                else:
                    await asyncio.sleep(LOOK_S)

    def _is_written(self) -> bool:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False


def found(folder: Path) -> list[Tape]:
    """The tapes in a folder; what is no tape is passed over."""
    return [tape for path in sorted(folder.glob(f"*{SUFFIX}")) if (tape := _read(path))]


def header_of(name: str, turn_id: str, model: str, match: str) -> dict[str, Any]:
    """What a tape's first line says; the courier adds its process number."""
    return {"name": name, "turn": turn_id, "model": model, "match": match}


def _read(path: Path) -> Tape | None:
    with path.open("rb") as file:
        line = file.readline(HEADER_MAX_BYTES)
    try:
        said = json.loads(line)
        who = said["turn"], said["model"], said["match"]
        return Tape(path, *who, int(said["pid"]), len(line))
    except (ValueError, KeyError, TypeError):
        return None
