"""Chat completions, embeddings and token counts asked of one server over HTTP.

What engine remote, engine vllm and a forwarding script have in common: one attempt a call, every
failure once and typed, in the details that `router.retry` reads. Who lends the HTTP client closes
it; nothing is sent that was not asked for.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any

import httpx2

from appliance.clock import Clock, new_id
from appliance.config.models import Prices
from appliance.egress.errand import Errand, on_errand
from appliance.egress.rates import retry_after_s
from appliance.engines.provider import faults
from appliance.engines.provider.bill import Due, Tally, usage_of
from appliance.engines.provider.faults import Stage
from appliance.engines.provider.patience import Patience, Waiting
from appliance.engines.provider.sse import run_out
from appliance.engines.remote.reader import Malformed, Reader
from appliance.errors import ApplianceError, BadRequest, PromptTooLong
from appliance.types import Completion, Delta, GenerateRequest, Json, Label, highest
from appliance.wire.anthropic import tool_names

ANSWER_MAX_BYTES = 64 << 20
"""Of one stream, framing included: a thousand times the longest answer."""

_TOO_LONG = re.compile(
    r"maximum context length|context window|exceeds? (the )?(available )?context|too long",
    re.IGNORECASE,
)


class ChatClient:
    """One model on one server. `key` is asked at each call; None sends no key."""

    def __init__(
        self,
        name: str,
        http: httpx2.AsyncClient,
        *,
        base_url: str,
        key: Callable[[], str | None],
        clock: Clock,
        patience: Patience,
        prices: Prices | None = None,
    ) -> None:
        self._name = name
        self._http = http
        self._base_url = base_url
        self._key = key
        self._clock = clock
        self._patience = patience
        self._prices = prices or Prices()

    async def stream(
        self,
        request: GenerateRequest,
        body: dict[str, Json],
        *,
        tape: str = "",
        on_adopted: Callable[[str], Awaitable[None]] | None = None,
    ) -> AsyncGenerator[Delta | Completion, None]:
        """Deltas, then one `Completion`. Closing it closes the connection, which cancels. `tape`
        names the answer's tape; `on_adopted` hears when an earlier one is read instead."""
        waiting = Waiting(self._patience, self._clock, request.deadline_s)
        label = highest(request.label, *(message.label for message in request.messages))
        errand = Errand(label, request.agent, request.turn_id, tape)
        response = await self._sent("/chat/completions", body, errand, waiting, stream=True)
        adopted = response.extensions.get("adopted")
        if on_adopted is not None and adopted:
            await on_adopted(adopted)
        try:
            reader = Reader(tool_names(request.tools), request.label, lambda: new_id("call"))
            async with aclosing(self._read(response, reader, waiting)) as deltas:
                async for delta in deltas:
                    waiting.progressed()
                    yield delta
            if not reader.is_whole:
                raise faults.cut(self._name, "no finish_reason and [DONE]", _id(response))
            yield self._completion(reader, body, waiting, _id(response))
        finally:
            await response.aclose()

    async def events(
        self, path: str, body: dict[str, Json], errand: Errand, waiting: Waiting
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of any streamed answer, to its [DONE]. The caller tells `waiting` of its
        progress. Raises what `engines.provider.faults` has; `CutStream` for an early end."""
        response = await self._sent(path, body, errand, waiting, stream=True)
        try:
            async with aclosing(self._chunks(response, waiting)) as chunks:
                async for chunk in chunks:
                    if chunk is None:
                        return
                    yield chunk
            raise faults.cut(self._name, "no [DONE]", _id(response))
        finally:
            await response.aclose()

    async def post(self, path: str, body: dict[str, Json], errand: Errand) -> Any:
        """The answer's JSON."""
        waiting = Waiting(self._patience, self._clock, None)
        response = await self._sent(path, body, errand, waiting, stream=False)
        try:
            return response.json()
        except ValueError as error:
            raise faults.malformed(self._name, str(error), _id(response)) from error

    async def embed(self, model: str, texts: Sequence[str], errand: Errand) -> list[list[float]]:
        """L2-normalised, in the order of `texts`."""
        body = {"model": model, "input": list(texts), "encoding_format": "float"}
        answer = await self.post("/embeddings", body, errand)
        try:
            rows = sorted(answer["data"], key=lambda row: row["index"])
            vectors = [_normal([float(x) for x in row["embedding"]]) for row in rows]
        except (KeyError, TypeError, ValueError) as error:
            raise faults.malformed(self._name, "no vectors in an embedding", None) from error
        if len(vectors) != len(texts):
            raise faults.malformed(self._name, "as many vectors as texts are needed", None)
        return vectors

    async def _sent(
        self, path: str, body: dict[str, Json], errand: Errand, waiting: Waiting, *, stream: bool
    ) -> httpx2.Response:
        headers = {"user-agent": "appliance"}
        if (key := self._key()) is not None:
            headers["authorization"] = f"Bearer {key}"
        url = path if path.startswith("http") else f"{self._base_url}{path}"
        request = self._http.build_request("POST", url, json=body, headers=headers)
        stage, wait_s = waiting.next(Stage.HEADERS)
        try:
            with on_errand(errand):
                async with asyncio.timeout(wait_s):
                    response = await self._http.send(request, stream=stream)
                    if response.status_code != 200:
                        await response.aread()
        except TimeoutError as error:
            raise faults.timed_out(self._name, stage, wait_s) from error
        except httpx2.ConnectTimeout as error:
            raise faults.timed_out(self._name, Stage.CONNECT, self._patience.connect_s) from error
        except httpx2.TimeoutException as error:
            raise faults.timed_out(self._name, stage, wait_s) from error
        except (httpx2.HTTPError, OSError) as error:
            raise faults.unreachable(self._name, error) from error
        if response.status_code != 200:
            await response.aclose()
            raise self._refused(response)
        return response

    async def _read(
        self, response: httpx2.Response, reader: Reader, waiting: Waiting
    ) -> AsyncGenerator[Delta, None]:
        async with aclosing(self._chunks(response, waiting)) as chunks:
            async for chunk in chunks:
                if chunk is None:
                    reader.is_done = True
                    return
                try:
                    for delta in reader.read(chunk):
                        yield delta
                except Malformed as error:
                    raise faults.malformed(self._name, str(error), _id(response)) from error

    async def _chunks(
        self, response: httpx2.Response, waiting: Waiting
    ) -> AsyncGenerator[dict[str, Any] | None, None]:
        """Each data line's JSON; None for [DONE], after which nothing follows."""
        async with aclosing(_lines(response)) as lines:
            while True:
                stage, wait_s = waiting.next(Stage.NEXT_TOKEN)
                try:
                    async with asyncio.timeout(wait_s):
                        line = await anext(lines)
                    data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                    chunk = json.loads(data) if data and data != "[DONE]" else None
                except StopAsyncIteration:
                    return
                except TimeoutError as error:
                    raise faults.timed_out(self._name, stage, wait_s) from error
                except (httpx2.HTTPError, OSError) as error:
                    raise faults.cut(self._name, str(error) or "reset", _id(response)) from error
                except (ValueError, RecursionError) as error:
                    raise faults.malformed(self._name, str(error), _id(response)) from error
                if data == "[DONE]":
                    await run_out(lines)
                    yield None
                    return
                if data and not isinstance(chunk, dict):
                    raise faults.malformed(self._name, "a chunk is no object", _id(response))
                if chunk is not None:
                    if "error" in chunk:
                        raise self._failed(200, chunk, response)
                    yield chunk

    def _completion(
        self, reader: Reader, body: dict[str, Json], waiting: Waiting, request_id: str | None
    ) -> Completion:
        try:
            message, stop = reader.message()
        except Malformed as error:
            raise faults.malformed(self._name, str(error), request_id) from error
        tally = reader.tally or Tally(len(json.dumps(body)) // 4, output_tokens=reader.pieces)
        usage = usage_of(
            tally,
            self._prices,
            prefill_ms=waiting.first_token_ms,
            decode_ms=waiting.decode_ms,
        )
        values = [entry.logprob for entry in reader.logprobs]
        return Completion(
            message,
            stop,
            usage,
            stop_sequence=reader.stop_sequence,
            logprobs=tuple(reader.logprobs),
            mean_logprob=sum(values) / len(values) if values else None,
            min_logprob=min(values, default=None),
        )

    def _refused(self, response: httpx2.Response) -> ApplianceError:
        try:
            body = response.json()
        except ValueError:
            body = {"message": response.text}
        return self._failed(response.status_code, body, response)

    def _failed(self, status: int, body: Any, response: httpx2.Response) -> ApplianceError:
        error = body.get("error", body) if isinstance(body, dict) else {}
        if not isinstance(error, dict):
            error = {"message": str(error)}
        text = str(error.get("message") or "")[: faults.MESSAGE_MAX_CHARS]
        if status in (400, 413) and _TOO_LONG.search(text):
            return PromptTooLong(
                f"prompt is too long: {text}",
                hint="start a new session, or choose a larger window",
            )
        if status in (400, 422):
            details = {"status": status, "type": str(error.get("type") or "") or None}
            return BadRequest(f"{self._name} refuses the request: {text}", details=details)
        wait_s = retry_after_s(response.headers)
        return faults.refused_answer(self._name, status, error, response.headers, wait_s)


async def due(response: httpx2.Response, prices: Prices) -> Due | None:
    """What an answer on tape has cost; None where it does not say."""
    if response.status_code != 200:
        return Due(None)
    reader = Reader({}, Label.PUBLIC, lambda: "")
    with suppress(Malformed, ValueError, httpx2.HTTPError):
        async for line in _lines(response):
            data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
            if data and data != "[DONE]":
                for _ in reader.read(json.loads(data)):
                    pass
    return None if reader.tally is None else Due(usage_of(reader.tally, prices))


async def _lines(response: httpx2.Response) -> AsyncGenerator[str, None]:
    """Lines as server-sent events have them: they end at LF or CR LF alone. (The HTTP library's
    own also end at U+2028 and the like, which JSON may hold.)"""
    held, total = b"", 0
    async for part in response.aiter_bytes():
        total += len(part)
        if total > ANSWER_MAX_BYTES:
            raise Malformed("it does not end")
        *lines, held = (held + part).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode("utf-8", "replace")
    if held:
        yield held.removesuffix(b"\r").decode("utf-8", "replace")


def _normal(vector: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector] if length else vector


def _id(response: httpx2.Response) -> str | None:
    return response.headers.get("x-request-id")
