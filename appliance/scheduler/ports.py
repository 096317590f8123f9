"""What the scheduler's shell asks of others: engines, what memory holds, whose part is what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

from appliance.engines.base import Engine
from appliance.scheduler.values import Fit, ModelSpec, Use

Parts: TypeAlias = Callable[[Mapping[ModelSpec, Use], Mapping[str, int]], Mapping[str, ModelSpec]]
"""`together.parts`: what models used beside each other are to wish for."""


class EngineFactory(Protocol):
    """Builds engines, starts nothing; in a thread, as files are read and libraries imported.
    `placement` is what the placer put into `Fit.placement`."""

    def create(self, model: str, placement: object) -> Engine: ...


class MemoryWatch(Protocol):
    """Knows what an instance holds, and when a dead process's bytes are free again."""

    async def foresee(self, spec: ModelSpec, fit: Fit) -> None:
        """A last look before a load, its bytes being promised. Raises `NoCapacity` to decline."""
        ...

    async def measured(self, spec: ModelSpec, fit: Fit, pid: int) -> Mapping[str, int]:
        """Bytes by device that a loaded instance holds, where the devices tell."""
        ...

    async def returned(self, pid: int, devices: Sequence[str]) -> None: ...
