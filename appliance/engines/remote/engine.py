"""Engine remote: see `engines.base.Engine`. One attempt a call; retrying is `turns.step`'s."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict
from functools import partial
from types import TracebackType
from typing import Self

import httpx2

from appliance.clock import Clock
from appliance.config.models import RemoteModel
from appliance.egress.errand import Errand
from appliance.engines.base import EngineFacts, InstanceState
from appliance.engines.provider.bill import Tally, usage_of
from appliance.engines.provider.meter import Meter
from appliance.engines.provider.patience import Patience
from appliance.engines.remote.client import ChatClient
from appliance.engines.remote.request import chat_body
from appliance.errors import ApplianceError, BadRequest, CutStream, EngineTimeout
from appliance.types import Completion, Delta, GenerateRequest, Label, Message, ToolSpec, Usage

CHARS_PER_TOKEN = 3
"""Where the server counts no tokens; on the safe side of the usual 3.5 to 4."""


class RemoteEngine:
    """One configured model behind an OpenAI-compatible server. `lend` gives an HTTP client of the
    door's, which this closes; `key` gives the key at each call, None where none is needed."""

    def __init__(
        self,
        name: str,
        model: RemoteModel,
        *,
        lend: Callable[[], httpx2.AsyncClient],
        key: Callable[[], str | None],
        meter: Meter,
        clock: Clock,
        patience: Patience | None = None,
    ) -> None:
        self._name = name
        self._model = model
        self._lend = lend
        self._key = key
        self._meter = meter
        self._clock = clock
        self._patience = patience or Patience.within(model.request_timeout_s)
        self._slots = asyncio.Semaphore(model.slots)
        self._http: httpx2.AsyncClient | None = None
        self._state = InstanceState.STOPPED

    @property
    def state(self) -> InstanceState:
        return self._state

    @property
    def facts(self) -> EngineFacts:
        return EngineFacts(
            self._model.context_window,
            self._model.slots,
            supports_tools=self._model.tools,
            supports_images=self._model.images,
            supports_thinking=self._model.thinking,
            supports_embeddings=self._model.embeddings,
            details={"counts_tokens": "estimate"},
        )

    @property
    def pid(self) -> int | None:
        return None

    @property
    def load_progress(self) -> float:
        return 1.0

    async def __aenter__(self) -> Self:
        self._http = self._lend()
        self._state = InstanceState.READY
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._state = InstanceState.STOPPED
        if self._http is not None:
            await self._http.aclose()

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Delta | Completion]:
        body = chat_body(request, self._model.model, self.facts, self._model.max_output_tokens)
        prompt_tokens = len(json.dumps(body)) // CHARS_PER_TOKEN
        pieces, is_settled = 0, False
        async with self._slots:
            tape = await self._meter.sent(request.turn_id, self._usage(prompt_tokens, 0))
            adopted = partial(self._meter.adopted, request.turn_id)
            stream = self._client().stream(request, body, tape=tape, on_adopted=adopted)
            try:
                async with aclosing(stream) as items:
                    async for item in items:
                        if isinstance(item, Completion):
                            is_settled = True
                            await self._meter.seen(request.turn_id, item.usage)
                        pieces += 1
                        yield item
            except (EngineTimeout, CutStream):
                raise  # it may have been taken, and be billed
            except ApplianceError:
                if pieces == 0:
                    is_settled = True
                    await self._meter.refused(request.turn_id)
                raise
            finally:
                if pieces and not is_settled:  # broken off, by them or by us: this much was used
                    usage = self._usage(prompt_tokens, pieces)
                    await self._meter.seen(request.turn_id, usage)

    def _usage(self, prompt_tokens: int, output_tokens: int) -> Usage:
        """A guess, until the server says."""
        tally = Tally(input_tokens=prompt_tokens, output_tokens=output_tokens)
        return usage_of(tally, self._model.prices)

    async def count_tokens(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> int:
        """An estimate (`facts.details` says so): the dialect has no count, and asking a server
        for one would send the prompt once more."""
        chars = sum(
            len(json.dumps(asdict(block), default=str)) for m in messages for block in m.blocks
        )
        chars += sum(
            len(json.dumps(dict(tool.input_schema))) + len(tool.description) for tool in tools
        )
        return -(-chars // CHARS_PER_TOKEN)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """What is embedded is taken for private, since nobody labelled it."""
        if not self._model.embeddings:
            raise BadRequest(f"{self._name} is not an embedding model")
        return await self._client().embed(self._model.model, texts, Errand(Label.PRIVATE))

    async def wait_failed(self) -> str:
        """Never: a server of others is not ours to restart; the breaker judges its answers."""
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    def _client(self) -> ChatClient:
        assert self._http is not None, "the engine is not entered"
        return ChatClient(
            self._name,
            self._http,
            base_url=self._model.base_url,
            key=self._key,
            clock=self._clock,
            patience=self._patience,
            prices=self._model.prices,
        )
