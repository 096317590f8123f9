"""The siblings' protocol: what every engine instance offers, whatever program runs the model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Protocol, Self

from appliance.types import Completion, Delta, GenerateRequest, Message, ToolSpec


class InstanceState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    ASLEEP = "asleep"
    """Warm: weights in host RAM, no VRAM held beyond the context (vLLM sleep level 1)."""
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What a ready instance says of itself. Windows in tokens, bytes as reserved by the process."""

    context_window: int
    slots: int
    supports_tools: bool = True
    supports_images: bool = False
    supports_thinking: bool = False
    supports_embeddings: bool = False
    model_hash: str = ""
    load_seconds: float = 0.0
    details: dict[str, object] = field(default_factory=dict)


class Engine(Protocol):
    """One loaded copy of a model (an *instance*), or one door to a provider.

    Use as `async with`: construction starts nothing, enter starts the program and returns when it
    can generate (raises `ModelBroken`, `EngineTimeout` or `EngineError`, each with the log's tail
    in `details["log_tail"]`), exit ends it and its process group and returns when it is gone.
    """

    @property
    def state(self) -> InstanceState: ...

    @property
    def facts(self) -> EngineFacts: ...

    @property
    def pid(self) -> int | None:
        """The process whose exit returns the memory; None for a provider."""
        ...

    @property
    def load_progress(self) -> float:
        """How much of the model is loaded, 0 to 1; 0 as long as that is not known."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def generate(self, request: GenerateRequest) -> AsyncIterator[Delta | Completion]:
        """Stream one answer: deltas, then exactly one `Completion`, then the end.

        Anything else that ends the stream is an exception (`EngineError` and its kin,
        `PromptTooLong`, `BadRequest`). Closing the iterator (`aclose`, cancellation) cancels the
        generation and frees its slot. Concurrent calls are allowed up to `facts.slots`; further
        ones wait inside the engine.
        """
        ...

    async def count_tokens(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> int:
        """Prompt tokens these messages and tools would take, templates included."""
        ...

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One L2-normalised vector per text. Raises `BadRequest` where unsupported."""
        ...

    async def wait_failed(self) -> str:
        """Returns, with the reason, only when the instance dies or hangs by itself."""
        ...
