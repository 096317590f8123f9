"""Engine vllm: see `engines.base.Engine`.

The prompt is rendered here, from the folder's own template, and sent as text: so tools, reasoning
and results look the same to a model under either engine, an agent's tools work with templates that
know of none, and no parser has to be chosen by the model's name. What an answer may be goes along
as one grammar (`chat/wholeturn.py`), so calls parse by construction; our parser reads them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance.clock import Clock
from appliance.config.models import Prices
from appliance.egress.errand import Errand
from appliance.engines.base import EngineFacts, InstanceState
from appliance.engines.chat.text import StopScanner
from appliance.engines.chat.turnplan import ChatPlan, plan
from appliance.engines.chat.wholeturn import whole_turn
from appliance.engines.provider import faults
from appliance.engines.provider.bill import Tally, usage_of
from appliance.engines.provider.patience import Patience, Waiting
from appliance.engines.remote.client import ChatClient
from appliance.engines.remote.reader import Malformed
from appliance.engines.vllm.answer import TextAnswer
from appliance.engines.vllm.folder import ChatFolder, read_chat_folder
from appliance.engines.vllm.params import VllmParams
from appliance.engines.vllm.server import VllmServer
from appliance.engines.vllm.starts import StartLocks
from appliance.errors import BadRequest, EngineError, ModelBroken
from appliance.types import (
    Completion,
    Delta,
    GenerateRequest,
    Json,
    Label,
    Message,
    Priority,
    Sampling,
    StopReason,
    ToolSpec,
)

PATIENCE = Patience(connect_s=5.0, headers_s=300.0, first_token_s=600.0, next_token_s=120.0,
                    answer_s=3_600.0)  # fmt: skip
"""Of a server of ours: a long prompt on a busy card is slow, not dead; the canary finds those."""
_FREE = Prices()


class VllmEngine:
    """One loaded folder. `locks` are shared by all engines of a daemon; `precheck` looks at the
    folder before anything is started, in a thread, and raises `ModelBroken`."""

    def __init__(
        self,
        params: VllmParams,
        *,
        locks: StartLocks,
        clock: Clock,
        precheck: Callable[[Path], None] | None = None,
        on_log: Callable[[str], None] | None = None,
        today: Callable[[], date] = date.today,
    ) -> None:
        self._params = params
        self._locks = locks
        self._clock = clock
        self._precheck = precheck
        self._today = today
        self._server = VllmServer(params, on_log)
        self._slots = asyncio.Semaphore(params.slots)
        self._state = InstanceState.STOPPED
        self._folder: ChatFolder | None = None
        self._load_seconds = 0.0

    @property
    def state(self) -> InstanceState:
        return self._state

    @property
    def facts(self) -> EngineFacts:
        thinks = self._folder is not None and self._folder.template.traits.thinking_switch
        return EngineFacts(
            self._params.context_window,
            self._params.slots,
            supports_tools=not self._params.embeddings,
            supports_thinking=thinks,
            supports_embeddings=self._params.embeddings,
            load_seconds=self._load_seconds,
            details={"kv_bytes": self._params.kv_bytes, "counts_tokens": "exact"},
        )

    @property
    def pid(self) -> int | None:
        return self._server.pid

    @property
    def load_progress(self) -> float:
        return self._server.progress

    @property
    def log_tail(self) -> str:
        return self._server.log_tail

    async def __aenter__(self) -> Self:
        self._state = InstanceState.STARTING
        began_s = self._clock.monotonic()
        try:
            self._folder = await asyncio.to_thread(self._read_folder)
            async with self._locks.starting(self._params.cards):
                await self._server.start()
        except BaseException:
            self._state = InstanceState.FAILED
            raise
        self._load_seconds = self._clock.monotonic() - began_s
        self._state = InstanceState.READY
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._state = InstanceState.STOPPED
        await self._server.stop()

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Delta | Completion]:
        if self._params.embeddings:
            raise BadRequest(f"{self._params.name} is an embedding model: it does not generate")
        if request.adapter is not None:
            raise BadRequest(f"adapter {request.adapter!r}: engine vllm has none configured")
        planned, body = await asyncio.to_thread(self._planned, request)
        async with self._slots, aclosing(self._answered(request, planned, body)) as items:
            async for item in items:
                yield item

    async def count_tokens(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> int:
        """As the server's own tokenizer counts them."""
        request = GenerateRequest("count", tuple(messages), tuple(tools))
        _, body = await asyncio.to_thread(self._planned, request)
        wanted = {key: body[key] for key in ("model", "prompt", "add_special_tokens")}
        answer = await self._client().post(
            f"{self._server.root}/tokenize", wanted, Errand(Label.PUBLIC)
        )
        try:
            return int(answer["count"])
        except (KeyError, TypeError, ValueError) as error:
            raise faults.malformed(self._params.name, "no count of tokens", None) from error

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        if not self._params.embeddings:
            raise BadRequest(f"{self._params.name} is not an embedding model")
        return await self._client().embed(self._params.name, texts, Errand(Label.PRIVATE))

    async def wait_failed(self) -> str:
        assert self._server.failed is not None, "enter the engine first"
        reason = await asyncio.shield(self._server.failed)
        self._state = InstanceState.FAILED
        return reason

    def _read_folder(self) -> ChatFolder:
        if not self._params.folder.is_dir():
            raise ModelBroken(f"model folder {self._params.folder} is not there")
        if self._precheck is not None:
            self._precheck(self._params.folder)
        return read_chat_folder(self._params.folder)

    def _planned(self, request: GenerateRequest) -> tuple[ChatPlan, dict[str, Json]]:
        """Raises `BadRequest`. Rendering a stranger's template: never on the event loop."""
        folder = self._folder
        assert folder is not None, "the engine is not entered"
        planned = plan(folder.template, request, today=self._today())
        sampling = request.sampling
        body: dict[str, Json] = {
            "model": self._params.name,
            "prompt": folder.prompt(planned.segments),
            "add_special_tokens": planned.adds_bos,
            "skip_special_tokens": False,
            "stream": True,
            "stream_options": {"include_usage": True},
            "priority": _PRIORITIES[request.priority],
            **_sampling(sampling),
        }
        room = self._params.context_window
        body["max_tokens"] = min(sampling.max_tokens or room, room)
        end = folder.template.traits.end_of_turn
        if end:
            body["stop"] = [end]
        if planned.constraint is not None:
            grammar = whole_turn(planned.constraint, folder.writer)
            body["structured_outputs"] = {"grammar": grammar}
        return planned, body

    async def _answered(
        self, request: GenerateRequest, planned: ChatPlan, body: dict[str, Json]
    ) -> AsyncGenerator[Delta | Completion, None]:
        waiting = Waiting(PATIENCE, self._clock, request.deadline_s)
        answer, parser = TextAnswer(), planned.parser
        scanner, stop = StopScanner(request.sampling.stop), None
        errand = Errand(request.label, request.agent, request.turn_id)
        try:
            chunks = self._client().events("/completions", body, errand, waiting)
            async with aclosing(chunks):
                async for chunk in chunks:
                    self._server.heard()
                    text = answer.read(chunk)
                    if not text:
                        continue
                    waiting.progressed()
                    if parser.in_text:
                        text, stop = scanner.feed(text)
                    else:
                        text = scanner.flush() + text
                    for delta in parser.feed(text) if text else ():
                        yield delta
                    if stop is not None:
                        break
            if stop is None and (rest := scanner.flush()):
                for delta in parser.feed(rest):
                    yield delta
            reason = answer.stop_reason if stop is None else StopReason.STOP_SEQUENCE
            last, message, reason = parser.finish(reason)
            for delta in last:
                yield delta
        except Malformed as error:
            raise faults.malformed(self._params.name, str(error), None) from error
        except EngineError as error:
            error.details.setdefault("log_tail", self.log_tail)
            raise
        yield self._completion(answer, message, reason, stop, body, waiting)

    def _completion(
        self,
        answer: TextAnswer,
        message: Message,
        reason: StopReason,
        stop: str | None,
        body: dict[str, Json],
        waiting: Waiting,
    ) -> Completion:
        guessed = Tally(len(str(body["prompt"])) // 4, output_tokens=answer.pieces)
        values = [entry.logprob for entry in answer.logprobs]
        return Completion(
            message,
            reason,
            usage_of(
                answer.tally or guessed,
                _FREE,
                prefill_ms=waiting.first_token_ms,
                decode_ms=waiting.decode_ms,
            ),
            stop_sequence=stop,
            logprobs=tuple(answer.logprobs),
            mean_logprob=sum(values) / len(values) if values else None,
            min_logprob=min(values, default=None),
        )

    def _client(self) -> ChatClient:
        if self._state is not InstanceState.READY or self._server.http is None:
            raise EngineError(f"{self._params.name} is {self._state.value}, not ready")
        return ChatClient(
            self._params.name,
            self._server.http,
            base_url=f"{self._server.root}/v1",
            key=self._server.secret,
            clock=self._clock,
            patience=PATIENCE,
        )


_PRIORITIES = {Priority.INTERACTIVE: 0, Priority.NORMAL: 1, Priority.BACKGROUND: 2}
"""vLLM's: lower runs first. Heard with `--scheduling-policy priority` alone."""

_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "logprobs": "logprobs",
}


def _sampling(sampling: Sampling) -> dict[str, Json]:
    body = {
        theirs: value
        for ours, theirs in _NAMES.items()
        if (value := getattr(sampling, ours)) is not None
    }
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    return body
