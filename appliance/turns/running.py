"""The unfinished turns: each one task, in the order of its session, with a wall around it.

What fails inside a turn ends as an event of that turn. After a restart the same tasks take up the
turns of the daemon before.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

from appliance.clock import Clock
from appliance.errors import ApplianceError, StoreError
from appliance.store.index import TurnRow
from appliance.store.journal import Journal
from appliance.turns import events as ev
from appliance.turns.live import LiveTurn, load_turn
from appliance.turns.loop import Parked
from appliance.turns.state import AWAITING_PERSON
from appliance.turns.stream import Streams

log = logging.getLogger(__name__)

STORE_RETRY_S = 1.0
STORE_RETRY_S_MAX = 15.0
"""While the journal cannot be written (disk full) a turn waits this long between two tries."""


class TurnRunner(Protocol):
    """Runs one live turn to its end (the daemon binds `loop.run_turn` to its rooms)."""

    async def __call__(self, turn: LiveTurn) -> None: ...


class _Waking:
    """A turn of an earlier daemon that is still to be read back."""

    def __init__(self, row: TurnRow) -> None:
        self.row = row
        self.is_over = asyncio.Event()


class Running:
    """The owner of every `LiveTurn`. `async with`: exit ends the tasks; the journal knows where to
    go on."""

    def __init__(self, journal: Journal, streams: Streams, run: TurnRunner, clock: Clock) -> None:
        self._journal = journal
        self._streams = streams
        self._run = run
        self._clock = clock
        self._live: dict[str, LiveTurn] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cancelled: dict[str, ev.TurnCancelled] = {}
        self._waking: dict[str, _Waking] = {}
        self._one_by_one = asyncio.Lock()
        self._session_order: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._tasks.values():
            task.cancel()
        await self._group.__aexit__(kind, error, trace)

    def __len__(self) -> int:
        return len(self._tasks)

    def is_wanted(self, turn_id: str) -> bool:
        """Whether this turn goes on: it is unfinished and nobody cancelled it."""
        return turn_id in self._tasks and turn_id not in self._cancelled

    def get(self, turn_id: str) -> LiveTurn | None:
        """An unfinished turn that is in RAM; one that waits to be read back is not yet."""
        return self._live.get(turn_id)

    async def awake(self, turn_id: str) -> LiveTurn | None:
        """An unfinished turn in RAM, waiting for it if it is about to be read back."""
        waking = self._waking.get(turn_id)
        if turn_id not in self._live and waking is not None:
            await waking.is_over.wait()
        return self._live.get(turn_id)

    def begin(self, turn: LiveTurn) -> None:
        """Run a turn that was just accepted, when its session is free for it."""
        self._live[turn.turn_id] = turn
        session_id = turn.state.session_id
        self._keep(turn.turn_id, session_id, self._in_order(turn.turn_id, session_id))

    def recover(self, rows: Sequence[TurnRow]) -> None:
        """Queue these unfinished turns again, through the ordinary path.

        They are journalled as resumed at once and read back one by one, oldest first: a turn of
        five hundred steps takes tens of milliseconds to fold, and the first of a hundred should
        not wait for the last. Whoever answers in one meanwhile waits until it is read (`awake`).
        """
        for row in sorted(rows, key=lambda row: row.turn_id):
            self._streams.open(row.turn_id)
            self._waking[row.turn_id] = _Waking(row)
            self._group.create_task(self._note_resumed(row), name=f"resume {row.turn_id}")
            work = self._in_order(row.turn_id, row.session_id)
            self._keep(row.turn_id, row.session_id, work)

    def cancel(self, turn_id: str, cancelled: ev.TurnCancelled) -> bool:
        """End a turn wherever it is. False if it is not running (any more)."""
        task = self._tasks.get(turn_id)
        if task is None:
            return False
        self._cancelled[turn_id] = cancelled
        if turn_id in self._live:
            self._live[turn_id].is_cancelled = True
        task.cancel()
        return True

    async def over(self, turn_id: str, within_s: float) -> None:
        """Returns when this turn has ended, or after that time."""
        task = self._tasks.get(turn_id)
        if task is not None:
            await asyncio.wait({task}, timeout=within_s)

    def children(self, turn_id: str) -> list[str]:
        """The unfinished turns that this one asked for."""
        live = [turn.turn_id for turn in self._live.values()
                if turn.state.accepted.parent_turn == turn_id]  # fmt: skip
        return live + [
            waking.row.turn_id
            for waking in self._waking.values()
            if waking.row.parent_turn == turn_id and waking.row.turn_id not in self._live
        ]

    async def drain(self, within_s: float, hurry: asyncio.Event) -> None:
        """Let running steps finish for `within_s` or until `hurry` is set. A person is not waited
        for, nor is a turn that has not been read back."""
        for turn_id, task in self._tasks.items():
            turn = self._live.get(turn_id)
            if turn is None or turn.state.status in AWAITING_PERSON:
                task.cancel()
        hurried = asyncio.create_task(hurry.wait())
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self._tasks and not hurry.is_set():
                    await asyncio.wait(
                        {hurried, *self._tasks.values()}, return_when=asyncio.FIRST_COMPLETED
                    )
        hurried.cancel()

    def _keep(self, turn_id: str, session_id: str, work: Coroutine[Any, Any, None]) -> None:
        task = self._group.create_task(work, name=turn_id)
        self._tasks[turn_id] = task
        task.add_done_callback(lambda _: self._forget(turn_id, session_id))

    def _forget(self, turn_id: str, session_id: str) -> None:
        self._tasks.pop(turn_id, None)
        self._live.pop(turn_id, None)
        self._waking.pop(turn_id, None)
        if not self._session_order[session_id].locked():
            self._session_order.pop(session_id, None)

    async def _in_order(self, turn_id: str, session_id: str) -> None:
        """One turn, when those of its session that were accepted before it have ended."""
        try:
            async with self._session_order[session_id]:
                turn = self._live.get(turn_id) or await self._wake(turn_id)
                if turn is not None:
                    await self._guarded(turn)
        except asyncio.CancelledError:
            if turn_id not in self._cancelled:
                raise  # the daemon stops; the journal knows where to go on
            turn = self._live.get(turn_id) or await self._wake(turn_id)
            if turn is not None:
                await self._end(turn, self._cancelled.pop(turn_id))

    async def _guarded(self, turn: LiveTurn) -> None:
        """The wall around a turn: whatever happens inside ends as an event of this turn."""
        try:
            await self._outlast_store(turn, partial(self._run, turn))
        except Parked:
            return
        except ApplianceError as error:
            await self._end(turn, self._failed(turn, error))
        except BaseExceptionGroup as group:
            await self._end(turn, self._failed(turn, _first_of_ours(group)))
        except Exception as error:
            log.exception("turn %s failed unexpectedly", turn.turn_id)
            unexpected = ApplianceError(
                f"unexpected failure inside the turn: {error!r}",
                hint="the daemon's log has the traceback",
            )
            await self._end(turn, self._failed(turn, unexpected))

    async def _outlast_store(self, turn: LiveTurn, work: Callable[[], Awaitable[None]]) -> None:
        """Do this to a turn, again and again while its journal cannot be written (disk full)."""
        wait_s = STORE_RETRY_S
        while True:
            try:
                await work()
                return
            except StoreError as error:
                log.error("turn %s waits for the journal: %s", turn.turn_id, error)
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, STORE_RETRY_S_MAX)
            with suppress(StoreError):
                await turn.reload()

    def _failed(self, turn: LiveTurn, error: ApplianceError) -> ev.TurnFailed:
        return ev.TurnFailed(
            error=error.to_json(),
            steps=len(turn.state.steps),
        )

    async def _end(self, turn: LiveTurn, body: ev.TurnFailed | ev.TurnCancelled) -> None:
        async def end() -> None:
            if not turn.state.is_finished:
                await turn.append(body)

        await self._outlast_store(turn, end)

    async def _note_resumed(self, row: TurnRow) -> None:
        """For people; a turn goes on without it while the disk is full."""
        resumed = ev.TurnResumed(reason="the daemon was restarted")
        with suppress(StoreError):
            await self._journal.append(resumed.draft(row.session_id, row.turn_id), durable=False)

    async def _wake(self, turn_id: str) -> LiveTurn | None:
        """Read an unfinished turn back from the journal. None if it cannot be read."""
        waking = self._waking[turn_id]
        try:
            async with self._one_by_one:
                state = await load_turn(self._journal, turn_id)
            if state is None or state.is_finished:
                return None
            key = waking.row.idempotency_key
            turn = LiveTurn(self._journal, self._streams, self._clock, state, key)
            self._live[turn_id] = turn
            return turn
        except StoreError as error:
            log.error("turn %s cannot be resumed: %s", turn_id, error)
            return None
        except Exception:  # the wall of a turn: what one journalled must not end the daemon
            log.exception("turn %s cannot be resumed", turn_id)
            return None
        finally:
            waking.is_over.set()


def _first_of_ours(group: BaseExceptionGroup[BaseException]) -> ApplianceError:
    """The first of our errors in a group from parallel calls; else one that names the first."""
    ours = group.subgroup(ApplianceError)
    while ours is not None:
        error = ours.exceptions[0]
        if isinstance(error, ApplianceError):
            return error
        ours = error if isinstance(error, BaseExceptionGroup) else None
    return ApplianceError(f"unexpected failure inside the turn: {group.exceptions[0]!r}")
