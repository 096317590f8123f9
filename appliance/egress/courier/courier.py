"""The daemon's side of the courier: starts it, hands it connections, and keeps its tapes."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance.egress.courier import process, tape
from appliance.egress.courier.tape import Tape

log = logging.getLogger(__name__)

KEPT_S = 3_600.0
"""How long the tape of a call that is paid waits for its turn to take the answer."""

IDLE_S = 30.0
"""How long a connection is kept for the next call. Servers of models keep theirs for a minute or
more, so that ours go first; and what nobody uses shall not stay open."""

FORGET_S = 5.0
"""From a settlement to the end of its tape: far more than the journal needs for the step."""

LEAVE_S = 2.0
"""At the end of the daemon a courier has nothing left to carry; then it is ended."""

_TOLD = ("SSL_CERT_FILE", "SSL_CERT_DIR")
"""Of the environment: where OpenSSL finds the certificates that the daemon trusts too."""


class Courier:
    """One courier process, started when first needed and again should it die.

    `async with`: entering reads the tapes an earlier daemon left, leaving ends the process.
    """

    def __init__(self, folder: Path, *, idle_s: float = IDLE_S) -> None:
        self._folder = folder
        self._idle_s = idle_s
        self._process: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        self._starting = asyncio.Lock()
        self._left: dict[str, Tape] = {}
        self._adopted: set[str] = set()
        self._settled: set[str] = set()

    async def __aenter__(self) -> Self:
        self._left = await asyncio.to_thread(self._find)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in list(self._settled):
            self._unlink(name)
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            try:
                await asyncio.wait_for(self._process.wait(), LEAVE_S)
            except TimeoutError:
                await self.cut()

    # --- carrying -------------------------------------------------------------------------------

    async def is_ready(self) -> bool:
        """Whether calls can be carried now. One that cannot be started is no reason to refuse
        them: they go from the daemon itself, and what a kill leaves due is estimated."""
        async with self._starting:
            if self._process is not None and self._process.returncode is None:
                return True
            try:
                await self._start()
            except OSError as error:
                log.warning("no courier could be started: %s", error)
                return False
        return True

    def carry(self, server: socket.socket) -> socket.socket:
        """Hand over a connection for our end of a link that `CourierStream` speaks over. It is the
        courier's from here on. Raises `OSError`."""
        ours, theirs = socket.socketpair()
        with server, theirs:
            if self._control is None:
                ours.close()
                raise ConnectionError("no courier is running")
            try:
                socket.send_fds(self._control, [b"+"], [server.fileno(), theirs.fileno()])
            except OSError:
                ours.close()
                raise
        ours.setblocking(False)
        return ours

    async def cut(self) -> None:
        """End every call under way at once, those an earlier daemon left too."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        await asyncio.to_thread(self._end_strays)

    # --- tapes ----------------------------------------------------------------------------------

    def has_tape(self, name: str) -> bool:
        """Whether the request of this name may have left: a tape is made before."""
        return self._path(name).exists()

    def left(self, name: str) -> Tape | None:
        """The tape of this name that an earlier daemon left."""
        return self._left.get(name)

    def adopt(self, turn_id: str, match: str) -> Tape | None:
        """A tape left of the very same request of the same turn: its answer is paid. Given once."""
        for name, each in self._left.items():
            if each.turn_id == turn_id and each.match == match and name not in self._adopted:
                self._adopted.add(name)
                return each
        return None

    def forget(self, name: str) -> None:
        """The call of this name is settled, and its answer taken or void. Its tape goes a little
        later: were we killed before the step is in the journal, the answer would be lost."""
        self._settled.add(name)
        asyncio.get_running_loop().call_later(FORGET_S, self._unlink, name)

    async def tidy(self) -> None:
        """Remove what earlier daemons left, once their calls are settled: the old ones now, the
        others when their turns have had the time to take them."""
        entered_s = time.time()
        await asyncio.to_thread(self._drop, entered_s - KEPT_S)
        await asyncio.sleep(KEPT_S)
        self._left.clear()
        await asyncio.to_thread(self._drop, entered_s)

    # --- inside ---------------------------------------------------------------------------------

    def _unlink(self, name: str) -> None:
        self._settled.discard(name)
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{tape.SUFFIX}"

    def _find(self) -> dict[str, Tape]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return {each.name: each for each in tape.found(self._folder)}

    def _drop(self, before_s: float) -> None:
        for path in self._folder.glob(f"*{tape.SUFFIX}"):
            if path.stat().st_mtime < before_s:
                path.unlink(missing_ok=True)

    def _end_strays(self) -> None:
        for each in self._left.values():
            each.cut()

    async def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-I",
                    "-S",
                    process.__file__,
                    str(self._folder),
                    str(self._idle_s),
                    stdin=theirs.fileno(),
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.DEVNULL,
                    start_new_session=True,
                    env={
                        "LANG": "C.UTF-8",
                        **{name: os.environ[name] for name in _TOLD if name in os.environ},
                    },
                    cwd="/",
                )
            except OSError:
                ours.close()
                raise
        if self._control is not None:
            self._control.close()
        ours.setblocking(False)
        self._control = ours
