"""Engine claude: see `engines.base.Engine`. One attempt a call; retrying is `turns.step`'s.

The anthropic SDK builds and sends the request; the stream is split by `provider.sse` and read by
`reader`, because the SDK takes a cut stream for a finished one. It is kept from what it would do by
itself: its retries (each is billed anew), the environment's proxies, headers, profiles
and base URL, telemetry headers, tracing.

Money is told of as soon as it is known (`Meter`): the prompt's guessed cost before it is sent, the
provider's count at `message_start`, then the final count. The answer is taped on its way
(`egress.courier`), so what a crash in mid-answer leaves due is read from its tape (`due`). An
answer that is not taped is told of every `WATERMARK_TOKENS` of output too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeVar

import anthropic
import httpx2
from anthropic import AsyncAnthropic, AsyncStream

from appliance.clock import Clock, new_id
from appliance.config.models import ClaudeModel, Prices
from appliance.egress.errand import Errand, on_errand
from appliance.egress.rates import retry_after_s
from appliance.engines.base import EngineFacts, InstanceState
from appliance.engines.claude.reader import Malformed, Reader, StreamError
from appliance.engines.claude.request import count_body, messages_body
from appliance.engines.provider import faults
from appliance.engines.provider.bill import Due, Tally, usage_of
from appliance.engines.provider.faults import Stage
from appliance.engines.provider.meter import Meter
from appliance.engines.provider.patience import Patience, Waiting
from appliance.engines.provider.sse import run_out, server_events
from appliance.errors import ApplianceError, BadRequest, EngineError, EngineTimeout
from appliance.types import (
    Completion,
    Delta,
    GenerateRequest,
    Label,
    Message,
    ToolSpec,
    highest,
)
from appliance.wire.anthropic import tool_names

WATERMARK_TOKENS = 8
"""Output between two words to the meter, of an answer that is not taped: what a crash then leaves
unknown is at most this, at 10 dollars a million 0.008 cents."""

CHARS_PER_TOKEN = 3
"""For what the provider has not counted yet; on the safe side of the usual 3.5 to 4."""

_KEPT_HEADERS = frozenset(
    {"content-length", "content-type", "accept", "accept-encoding", "connection"}
    | {"anthropic-version", "anthropic-beta"}
)

T = TypeVar("T")


class ClaudeEngine:
    """One configured Claude model. `lend` gives an HTTP client of the door's, which this closes;
    `key` gives the key at each call, None where there is none."""

    def __init__(
        self,
        name: str,
        model: ClaudeModel,
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
        self._client: AsyncAnthropic | None = None
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
        )

    @property
    def pid(self) -> int | None:
        return None

    @property
    def load_progress(self) -> float:
        return 1.0

    async def __aenter__(self) -> Self:
        self._http = self._lend()
        self._http.event_hooks = {"request": [self._bare], "response": []}
        self._state = InstanceState.READY
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._state = InstanceState.STOPPED
        self._client = None
        if self._http is not None:
            await self._http.aclose()

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Delta | Completion]:
        """Raises, once and typed, what `faults` lists; `EgressDenied` for what may not leave."""
        async with self._slots:
            waiting = Waiting(self._patience, self._clock, request.deadline_s)
            stream, is_taped = await self._opened(request, waiting)
            try:
                reading = self._read(request, stream.response, waiting, is_taped)
                async with aclosing(reading) as items:
                    async for item in items:
                        yield item
            finally:
                await stream.close()

    async def count_tokens(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> int:
        """The provider's own count. What is counted leaves the machine like what is asked."""
        label = highest(*(message.label for message in messages))
        body = count_body(messages, tools, self._model)
        waiting = Waiting(self._patience, self._clock, None)
        counted = await self._answered(
            lambda client: client.post(
                "/v1/messages/count_tokens", body=body, cast_to=dict[str, Any]
            ),
            Errand(label),
            waiting,
        )
        tokens = counted.get("input_tokens")
        if not isinstance(tokens, int):
            raise faults.malformed(self._name, "no input_tokens in a token count", None)
        return tokens

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise BadRequest(f"{self._name} is a Claude model, and these do not embed")

    async def wait_failed(self) -> str:
        """Never: a provider is not ours to restart; the breaker judges it by its answers."""
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    # --- one call -------------------------------------------------------------------------------

    async def _opened(
        self, request: GenerateRequest, waiting: Waiting
    ) -> tuple[AsyncStream[Any], bool]:
        """The answer's stream, and whether it is taped."""
        body = messages_body(request, self._model)
        label = highest(request.label, *(message.label for message in request.messages))
        guess = Tally(input_tokens=len(json.dumps(body)) // CHARS_PER_TOKEN)
        tape = await self._meter.sent(request.turn_id, usage_of(guess, self._model.prices))
        try:
            stream = await self._answered(
                lambda client: client.post(
                    "/v1/messages",
                    body=body,
                    cast_to=dict[str, Any],
                    stream=True,
                    stream_cls=AsyncStream[dict[str, Any]],
                ),
                Errand(label, request.agent, request.turn_id, tape),
                waiting,
            )
        except EngineTimeout:
            raise  # it may have been taken, and be billed
        except ApplianceError:
            await self._meter.refused(request.turn_id)
            raise
        if adopted := stream.response.extensions.get("adopted"):
            await self._meter.adopted(request.turn_id, adopted)
        return stream, bool(tape)

    async def _answered(
        self,
        send: Callable[[AsyncAnthropic], Awaitable[T]],
        errand: Errand,
        waiting: Waiting,
    ) -> T:
        """Send and wait for the answer's head; every failure as its one typed outcome."""
        client = self._sdk()
        stage, wait_s = waiting.next(Stage.HEADERS)
        try:
            with on_errand(errand):
                async with asyncio.timeout(wait_s):
                    return await send(client)
        except TimeoutError as error:
            raise faults.timed_out(self._name, stage, wait_s) from error
        except anthropic.APIStatusError as error:
            raise self._refused(error.status_code, error.body, error.response) from error
        except anthropic.APIConnectionError as error:
            raise self._unreached(error.__cause__ or error) from error

    async def _read(
        self,
        request: GenerateRequest,
        response: httpx2.Response,
        waiting: Waiting,
        is_taped: bool,
    ) -> AsyncGenerator[Delta | Completion, None]:
        reader = Reader(tool_names(request.tools), request.label, lambda: new_id("call"))
        told, events = Tally(), self._events(response, waiting)
        try:
            async for event in events:
                try:
                    delta = reader.take(event)
                except Malformed as error:
                    raise faults.malformed(self._name, str(error), _request_id(response)) from error
                except StreamError as error:
                    raise self._refused(200, {"error": error.error}, response) from error
                if delta is not None:
                    waiting.progressed()
                so_far = _so_far(reader)
                if reader.has_begun and _is_news(so_far, told, event, is_taped):
                    told = so_far
                    await self._tell(request, so_far)
                if delta is not None:
                    yield delta
                if reader.is_complete:
                    await run_out(events)
                    yield self._completion(reader, waiting)
                    return
            raise faults.cut(self._name, "it ended without its proper end", _request_id(response))
        finally:
            if reader.has_begun and not reader.has_stopped:
                await self._tell(request, _so_far(reader))

    async def _tell(self, request: GenerateRequest, so_far: Tally) -> None:
        await self._meter.seen(request.turn_id, usage_of(so_far, self._model.prices))

    async def _events(
        self, response: httpx2.Response, waiting: Waiting
    ) -> AsyncIterator[dict[str, Any]]:
        """The stream's events as JSON, pings left out. A ping proves a connection, not progress,
        so it does not put off the deadline of the next token."""
        events = server_events(response.aiter_bytes())
        while True:
            stage, wait_s = waiting.next(Stage.NEXT_TOKEN)
            try:
                async with asyncio.timeout(wait_s):
                    event = await anext(events)
                value = None if event.kind == "ping" else json.loads(event.data)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise faults.timed_out(self._name, stage, wait_s) from error
            except (httpx2.HTTPError, OSError) as error:
                how = str(error) or type(error).__name__
                raise faults.cut(self._name, how, _request_id(response)) from error
            except (ValueError, RecursionError) as error:
                raise faults.malformed(self._name, str(error), _request_id(response)) from error
            if value is not None:
                yield value

    def _completion(self, reader: Reader, waiting: Waiting) -> Completion:
        message, stop = reader.message()
        usage = usage_of(
            reader.tally,
            self._model.prices,
            prefill_ms=waiting.first_token_ms,
            decode_ms=waiting.decode_ms,
        )
        return Completion(message, stop, usage, stop_sequence=reader.stop_sequence)

    # --- the SDK, kept on a short leash ---------------------------------------------------------

    def _sdk(self) -> AsyncAnthropic:
        key = self._key()
        if key is None:
            raise EngineError(
                f"{self._name} has no key",
                hint=f"set {self._model.key_env or 'key_env'}, or the systemd credential "
                f"{self._model.key_credential}",
                details={"status": 401, "type": "authentication_error"},
            )
        assert self._http is not None, "the engine is not entered"
        if self._client is None or self._client.api_key != key:
            self._client = AsyncAnthropic(
                api_key=key,
                base_url=self._model.base_url,
                max_retries=0,
                timeout=self._http.timeout,
                http_client=self._http,
                open_telemetry=False,
            )
        return self._client

    async def _bare(self, request: httpx2.Request) -> None:
        """Takes off every header that is not needed: the SDK adds what it knows of this machine,
        and whatever `ANTHROPIC_CUSTOM_HEADERS` says, the key and the host not excepted."""
        for name in list(request.headers):
            if name.lower() not in _KEPT_HEADERS:
                del request.headers[name]
        request.headers["authorization"] = f"Bearer {self._key()}"
        request.headers["host"] = request.url.netloc.decode("ascii")
        request.headers["user-agent"] = "appliance"

    def _refused(self, status: int, body: object, response: httpx2.Response) -> ApplianceError:
        error = body.get("error") if isinstance(body, dict) else None
        return faults.refused_answer(
            self._name,
            status,
            error if isinstance(error, dict) else {},
            response.headers,
            retry_after_s(response.headers),
        )

    def _unreached(self, error: BaseException) -> ApplianceError:
        if isinstance(error, ApplianceError):
            return error
        if isinstance(error, httpx2.ConnectTimeout | httpx2.PoolTimeout):
            return faults.timed_out(self._name, Stage.CONNECT, self._patience.connect_s)
        if isinstance(error, httpx2.TimeoutException):
            return faults.timed_out(self._name, Stage.HEADERS, self._patience.headers_s)
        return faults.unreachable(self._name, error)


async def due(response: httpx2.Response, prices: Prices) -> Due | None:
    """What an answer on tape has cost, as far as it goes; None where it does not say."""
    if response.status_code != 200:
        return Due(None)
    reader = Reader({}, Label.PUBLIC, lambda: "")
    with suppress(Malformed, StreamError, ValueError, RecursionError, httpx2.HTTPError):
        async for event in server_events(response.aiter_bytes()):
            if event.kind != "ping":
                reader.take(json.loads(event.data))
    return Due(usage_of(_so_far(reader), prices)) if reader.has_begun else None


def _so_far(reader: Reader) -> Tally:
    """The provider's count, with the output estimated until it says it."""
    if reader.has_stopped:
        return reader.tally
    guess = reader.chars // CHARS_PER_TOKEN
    return replace(reader.tally, output_tokens=max(reader.tally.output_tokens, guess))


def _is_news(so_far: Tally, told: Tally, event: dict[str, Any], is_taped: bool) -> bool:
    match event["type"]:
        case "message_start" | "message_delta":
            return so_far != told
    return not is_taped and so_far.output_tokens >= told.output_tokens + WATERMARK_TOKENS


def _request_id(response: httpx2.Response) -> str | None:
    return response.headers.get("request-id")
