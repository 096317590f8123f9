"""What a caller asks the scheduler for, and what it gets: the right to one slot for a while."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from appliance.engines.base import Engine
from appliance.types import Priority, Progress, Usage


class ProgressSink(Protocol):
    """Where a waiter's `Progress` goes; must not block."""

    def put_nowait(self, item: Progress, /) -> None: ...


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """What a caller needs: one slot on one of `models`, most preferred first.

    `deadline_s` is on the monotonic clock. `preemptible` says that the caller can put up with
    `Lease.preempted` in mid-generation; only background steps are ever asked.
    """

    request_id: str
    agent: str
    models: tuple[str, ...]
    priority: Priority = Priority.NORMAL
    deadline_s: float | None = None
    weight: float = 1.0
    session: str = ""
    prompt_tokens: int = 0
    max_tokens: int = 0
    preemptible: bool = False
    progress: ProgressSink | None = None


@dataclass(slots=True, eq=False)
class Lease:
    """The right to one slot until the `async with` ends. `engine` is ready.

    When `preempted` is set, stop generating, leave the `async with` and ask again.
    """

    lease_id: str
    engine: Engine
    model: str
    instance_id: str
    queue_ms: int
    load_ms: int
    preempted: asyncio.Event = field(default_factory=asyncio.Event)
    _usage: Usage | None = None

    def report(self, usage: Usage) -> None:
        """What the step consumed; teaches the scheduler how fast this model is."""
        self._usage = usage

    @property
    def usage(self) -> Usage | None:
        return self._usage
