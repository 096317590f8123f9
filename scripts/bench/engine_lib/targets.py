"""What can be asked for an answer: our engine itself, or llama-server (and see `daemon.py`)."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import aiohttp

from appliance.clock import new_id
from appliance.engines.llamacpp.engine import SPIN_COUNT, LlamaCppEngine
from appliance.types import (
    Completion,
    GenerateRequest,
    Message,
    Progress,
    Role,
    Sampling,
    ToolChoice,
    ToolSpec,
    text_message,
)

END_TOKENS = (0, 2)
"""SmolLM2's; banned where a fixed number of tokens is to be generated."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`first_s` and `total_s` from asking, seconds."""

    text: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    first_s: float
    total_s: float
    gaps_s: tuple[float, ...] = ()
    """Between one delta and the next."""


class Target(Protocol):
    async def chat(self, system: str, user: str, *, tokens: int, endless: bool) -> Answer: ...


class Direct:
    """Our engine, without the daemon."""

    def __init__(self, engine: LlamaCppEngine) -> None:
        self.engine = engine

    async def chat(self, system: str, user: str, *, tokens: int, endless: bool) -> Answer:
        messages = (text_message(Role.SYSTEM, system), text_message(Role.USER, user))
        bias = dict.fromkeys(END_TOKENS, -100.0) if endless else {}
        answer, _ = await self.ask(messages, Sampling(tokens, 0.0, logit_bias=bias))
        return answer

    async def ask(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        *,
        tools: tuple[ToolSpec, ...] = (),
        tool_choice: ToolChoice = ToolChoice(),  # noqa: B008 - frozen
        schema: dict[str, object] | None = None,
        cache_key: str | None = None,
    ) -> tuple[Answer, Completion]:
        """One answer with all the engine offers."""
        request = GenerateRequest(
            new_id("bench"),
            tuple(messages),
            tools,
            tool_choice,
            schema,
            sampling,
            cache_key=cache_key,
        )
        began, first_s = time.perf_counter(), 0.0
        seen: list[float] = []
        async for item in self.engine.generate(request):
            now_s = time.perf_counter() - began
            if isinstance(item, Completion):
                used = item.usage
                return Answer(
                    item.message.text,
                    used.prompt_tokens,
                    used.cached_tokens,
                    used.output_tokens,
                    first_s or now_s,
                    now_s,
                    tuple(after - before for before, after in itertools.pairwise(seen)),
                ), item
            if not isinstance(item, Progress):
                first_s = first_s or now_s
                seen.append(now_s)
        raise AssertionError("an engine's stream ends with a completion")


class OpenAi:
    """A server with `/v1/chat/completions`: llama-server."""

    def __init__(self, session: aiohttp.ClientSession, base: str, model: str) -> None:
        self._session, self._base, self._model = session, base, model

    async def chat(self, system: str, user: str, *, tokens: int, endless: bool) -> Answer:
        body = {
            "model": self._model,
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": user},
            ],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if endless:
            body["logit_bias"] = {str(token): -100 for token in END_TOKENS}
        began, first_s, pieces, usage = time.perf_counter(), 0.0, [], {}
        url = f"{self._base}/v1/chat/completions"
        async with self._session.post(url, json=body) as response:
            response.raise_for_status()
            async for line in response.content:
                if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                    continue
                event = json.loads(line[6:])
                usage = event.get("usage") or usage
                for choice in event.get("choices", []):
                    text = choice.get("delta", {}).get("content")
                    if text:
                        first_s = first_s or time.perf_counter() - began
                        pieces.append(text)
        details = usage.get("prompt_tokens_details") or {}
        return Answer(
            "".join(pieces),
            usage["prompt_tokens"],
            details.get("cached_tokens", 0),
            usage["completion_tokens"],
            first_s,
            time.perf_counter() - began,
        )


@asynccontextmanager
async def llama_server(
    program: Path, model: Path, *, slots: int, window: int, threads: int
) -> AsyncIterator[OpenAi]:
    """Starts llama-server with the same model, threads and context, and the same brief spinning
    (else a busy machine would measure OpenMP's waiting and nothing else); ends it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["-m", str(model), "--host", "127.0.0.1", "--port", str(port)]
    arguments += ["-np", str(slots), "-c", str(slots * window), "-t", str(threads)]
    arguments += ["-tb", str(threads), "--kv-unified", "--no-webui", "--jinja"]
    server = await asyncio.create_subprocess_exec(
        str(program),
        *arguments,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env=os.environ | {"GOMP_SPINCOUNT": SPIN_COUNT},
    )
    base = f"http://127.0.0.1:{port}"
    try:
        # It closes idle connections without saying so; each question gets its own.
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        patient = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=patient) as session:
            await _until_healthy(session, base, server)
            yield OpenAi(session, base, "default")
    finally:
        if server.returncode is None:
            server.terminate()
        await server.wait()


async def _until_healthy(
    session: aiohttp.ClientSession, base: str, server: asyncio.subprocess.Process
) -> None:
    async with asyncio.timeout(120):
        while True:
            if server.returncode is not None:
                raise RuntimeError(f"llama-server ended with status {server.returncode}")
            try:
                async with session.get(f"{base}/health") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
