"""Watches the devices: a prober that reads NVML off the event loop and publishes snapshots.

A driver may hang for minutes in any call, and a hung call cannot be cancelled. So NVML lives in
one thread of its own (a daemon thread: it never holds up the exit), the prober waits two seconds
at most for a reading, and while a reading is out no other is asked for: the last values are
published again, marked stale. When the driver answers after all, the next poll is fresh.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from appliance.clock import Clock, SystemClock
from appliance.gpu import xid
from appliance.gpu.host import host_device
from appliance.gpu.nvml import CardReading, NvmlSession, NvmlUnavailable, Reading
from appliance.gpu.types import Device, Health, Inventory, ProcessUse

log = logging.getLogger(__name__)

CALL_LIMIT_S = 2.0
"""How long one reading may take before the last values are used instead."""
REOPEN_S = 30.0
"""Between attempts to initialise a driver that was not there."""
_MAX_PARENTS = 64


class Session(Protocol):
    """What the prober needs of NVML: the real session, or one over a recorded machine."""

    def open(self) -> None: ...

    def read(self) -> Reading: ...

    def close(self) -> None: ...


class Prober:
    """The watch over the devices. `async with`: the first snapshot is there on entering.

    `is_ours(pid)` tells our processes from foreign ones on a card; by default our descendants.
    One consumer or many may iterate `snapshots()`; each sees the newest, never a backlog.
    """

    def __init__(
        self,
        *,
        is_ours: Callable[[int], bool] | None = None,
        session: Session | None = None,
        clock: Clock | None = None,
        interval_s: float = 1.0,
        call_limit_s: float = CALL_LIMIT_S,
        reopen_s: float = REOPEN_S,
    ) -> None:
        self._is_ours = is_ours or descends_from_us
        self._session = session or NvmlSession()
        self._clock = clock or SystemClock()
        self._interval_s = interval_s
        self._call_limit_s = call_limit_s
        self._reopen_s = reopen_s
        self._thread = _NvmlThread(self._session)
        self._group = asyncio.TaskGroup()
        self._watch: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._wanted = asyncio.Event()
        self._pending: Future[Reading] | None = None
        self._cards: tuple[Device, ...] = ()
        self._versions: tuple[str | None, str | None] = (None, None)
        self._error: str | None = None
        self._is_open = False
        self._retry_at_s = 0.0
        self._latest = Inventory((host_device(),), self._clock.monotonic())

    @property
    def latest(self) -> Inventory:
        """The newest snapshot. It informs; re-check with `probe()` before a load."""
        return self._latest

    async def __aenter__(self) -> Self:
        self._thread.start()
        await self.probe()
        await self._group.__aenter__()
        self._watch = self._group.create_task(self._poll(), name="gpu.prober")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._thread.stop()
        await self._group.__aexit__(None, None, None)

    async def snapshots(self) -> AsyncIterator[Inventory]:
        """Every new snapshot, the current one first. Ends only with its consumer."""
        while True:
            seen = self._latest
            yield seen
            while self._latest is seen:
                await self._changed.wait()

    async def probe(self) -> Inventory:
        """Read the devices now (at most the call limit) and publish what was seen.

        Used right before a load: another program may have taken memory since the last poll."""
        reading = await self._read()
        if reading is not None:
            self._error = None
            self._versions = (reading.driver_version, reading.cuda_version)
            before = {card.uuid: card for card in self._cards}
            self._cards = tuple(
                _device(card, before.get(card.uuid), self._is_ours) for card in reading.cards
            )
        elif self._cards:
            self._cards = tuple(replace(card, is_stale=True) for card in self._cards)
        host = await asyncio.to_thread(host_device)
        self._publish(
            Inventory(
                (*self._cards, host),
                self._clock.monotonic(),
                *self._versions,
                nvml_error=self._error,
            )
        )
        return self._latest

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self.probe()

    async def _read(self) -> Reading | None:
        """One reading, or None when there is no driver or it does not answer in time."""
        if self._pending is None:
            if not self._is_open and self._clock.monotonic() < self._retry_at_s:
                return None
            self._pending = self._thread.submit(self._is_open and not self._must_reopen())
        waiting = asyncio.wrap_future(self._pending)
        try:
            reading = await asyncio.wait_for(asyncio.shield(waiting), self._call_limit_s)
        except TimeoutError:
            self._fail(f"NVML has not answered for {self._call_limit_s:g} s")
            return None
        except NvmlUnavailable as error:
            self._pending = None
            self._is_open = False
            self._cards = ()
            self._retry_at_s = self._clock.monotonic() + self._reopen_s
            self._fail(str(error))
            return None
        self._pending = None
        if not self._is_open:
            self._is_open = True
            self._retry_at_s = self._clock.monotonic() + self._reopen_s
        return reading

    def _must_reopen(self) -> bool:
        """A lost card comes back, if ever, only to a driver that is initialised again."""
        if self._clock.monotonic() < self._retry_at_s:
            return False
        is_lost = any(card.health is Health.LOST for card in self._cards)
        self._is_open = self._is_open and not is_lost
        return is_lost

    def _fail(self, reason: str) -> None:
        if reason != self._error:
            log.warning("GPUs: %s; going on with what is known", reason)
        self._error = reason

    def _publish(self, inventory: Inventory) -> None:
        self._latest = inventory
        self._changed.set()
        self._changed = asyncio.Event()


class _NvmlThread:
    """One thread, one reading at a time; the only place where NVML's functions run."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._asked: queue.SimpleQueue[tuple[bool, Future[Reading]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="gpu.nvml", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._asked.put(None)

    def submit(self, is_open: bool) -> Future[Reading]:
        future: Future[Reading] = Future()
        self._asked.put((is_open, future))
        return future

    def _run(self) -> None:
        opened = False
        while (asked := self._asked.get()) is not None:
            is_open, future = asked
            try:
                if not is_open:
                    if opened:
                        self._session.close()
                    opened = False
                    self._session.open()
                    opened = True
                future.set_result(self._session.read())
            except Exception as error:  # the wall of this thread: it goes to whoever waits
                future.set_exception(error)
        if opened:
            self._session.close()


def descends_from_us(pid: int) -> bool:
    """True for this process and those it started, however deep, as /proc tells it."""
    us = os.getpid()
    for _ in range(_MAX_PARENTS):
        if pid == us:
            return True
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False
        pid = int(stat.rpartition(")")[2].split()[1])
        if pid <= 1:
            return False
    return False


def _device(card: CardReading, before: Device | None, is_ours: Callable[[int], bool]) -> Device:
    """The card as we tell it: its health judged over time, its last numbers when it gives none."""
    previous = Health.OK if before is None else before.health
    health = xid.judge(previous, card.xids, card.error)
    last_xid = card.xids[-1] if card.xids else (before.last_xid if before else None)
    reason = card.reason or (f"Xid {last_xid}: {xid.describe(last_xid).text}" if last_xid else "")
    if card.total_bytes is None or card.used_bytes is None or card.free_bytes is None:
        known = before or Device(card.uuid, card.index, card.name, 0, 0, 0)
        return replace(known, health=health, reason=reason, last_xid=last_xid, is_stale=True)
    return Device(
        uuid=card.uuid,
        index=card.index,
        name=card.name,
        total_bytes=card.total_bytes,
        used_bytes=card.used_bytes,
        free_bytes=card.free_bytes,
        processes=tuple(ProcessUse(pid, used, is_ours(pid)) for pid, used in card.processes),
        is_mig=card.is_mig,
        temperature_c=card.temperature_c,
        power_mw=card.power_mw,
        power_limit_mw=card.power_limit_mw,
        utilisation_pct=card.utilisation_pct,
        compute_capability=card.compute_capability,
        health=health,
        reason=reason,
        last_xid=last_xid,
    )
