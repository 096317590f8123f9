"""A real engine for the dispatcher's tests: an in-process program that answers with its name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

import pytest

from appliance.engines.base import EngineFacts, InstanceState
from appliance.errors import ApplianceError, BadRequest
from appliance.types import (
    Completion,
    Delta,
    GenerateRequest,
    Message,
    Role,
    StopReason,
    TextDelta,
    ToolSpec,
    Usage,
    text_message,
)


class EchoEngine:
    """Says its model's name. `loading` gates the start, `die` ends it as a crash would."""

    def __init__(self, model: str, workshop: Workshop) -> None:
        self._model, self._workshop = model, workshop
        self._state = InstanceState.STOPPED
        self._died = asyncio.Event()

    @property
    def state(self) -> InstanceState:
        return self._state

    @property
    def facts(self) -> EngineFacts:
        return EngineFacts(context_window=4096, slots=self._workshop.slots)

    @property
    def pid(self) -> int | None:
        return None

    @property
    def load_progress(self) -> float:
        return 0.25

    async def __aenter__(self) -> Self:
        self._workshop.loads.append(self._model)
        self._workshop.live.append(self)
        self._state = InstanceState.STARTING
        await self._workshop.may_load.wait()
        error = self._workshop.errors.get(self._model)
        if error is not None:
            self._state = InstanceState.FAILED
            raise error
        self._state = InstanceState.READY
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._state = InstanceState.STOPPED
        self._workshop.unloads.append(self._model)

    def die(self) -> None:
        self._state = InstanceState.FAILED
        self._died.set()

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Delta | Completion]:
        yield TextDelta(self._model)
        message = text_message(Role.ASSISTANT, self._model)
        yield Completion(message, StopReason.END_TURN, Usage(output_tokens=1, decode_ms=1))

    async def count_tokens(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> int:
        return sum(len(message.text) for message in messages)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise BadRequest("echo does not embed")

    async def wait_failed(self) -> str:
        await self._died.wait()
        return f"{self._model} died: out of patience"


class Workshop:
    """Builds `EchoEngine`s and counts what happens to them."""

    def __init__(self, slots: int = 4) -> None:
        self.slots = slots
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.live: list[EchoEngine] = []
        self.errors: dict[str, ApplianceError] = {}
        self.may_load = asyncio.Event()
        self.may_load.set()

    def create(self, model: str, placement: object) -> EchoEngine:
        return EchoEngine(model, self)


@pytest.fixture
def make_workshop() -> type[Workshop]:
    return Workshop
