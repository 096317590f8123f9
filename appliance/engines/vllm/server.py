"""The server's process: started alone on its cards, ready when it has said a token, watched.

    start ──/health──▶ canary ──▶ ready ──silent, or says nothing──▶ failed, with the reason

`/health` answers while the engine behind it is dead or hangs, so what counts is one generated
token: before the instance is called loaded, and then whenever nothing else showed that it lives.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2

from appliance.engines.process import ChildProcess, clean_environment
from appliance.engines.vllm.params import VllmParams
from appliance.errors import EngineTimeout, ModelBroken

POLL_S = 0.25
START_CANARY_S = 300.0
"""The first token may compile kernels."""

_PROGRESS = re.compile(r"(?:Loading|Completed).*?(\d{1,3})% Completed|shards:\s+(\d{1,3})%")


class VllmServer:
    """One child. `start` returns when it generates; `failed` is set when it ends by itself."""

    def __init__(self, params: VllmParams, on_line: Callable[[str], None] | None) -> None:
        self._params = params
        self._on_line = on_line
        self._secret = secrets.token_urlsafe(32)
        self._port = 0
        self._child: ChildProcess | None = None
        self._watching: asyncio.Task[None] | None = None
        self._is_stopping = False
        self.http: httpx2.AsyncClient | None = None
        self.failed: asyncio.Future[str] | None = None
        self.progress = 0.0
        self.heard_s = 0.0

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    @property
    def log_tail(self) -> str:
        return "" if self._child is None else self._child.log_tail

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def secret(self) -> str:
        return self._secret

    async def start(self) -> None:
        """Raises `ModelBroken` or `EngineTimeout` with the log's tail, when it is gone."""
        self.failed = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._params.start_timeout_s):
                await self._launch()
                await self._until_ready()
        except TimeoutError as error:
            await self.stop()
            raise EngineTimeout(
                f"{self._params.name} was not ready after {self._params.start_timeout_s:g} s",
                details={"log_tail": self.log_tail},
            ) from error
        except BaseException:
            await self.stop()
            raise
        self.heard()
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """End it and its process group; returns when it is gone."""
        self._is_stopping = True
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        if self._child is not None:
            await self._child.stop(self._params.stop_grace_s)
        if self.http is not None:
            await self.http.aclose()

    def heard(self) -> None:
        """It has just answered something."""
        self.heard_s = asyncio.get_running_loop().time()

    async def _launch(self) -> None:
        self._port = _free_port()
        environment = clean_environment(os.environ, self._params.child_environment(self._secret))
        # A program installed beside our interpreter is found without an activated environment.
        beside = str(Path(sys.executable).parent)
        environment["PATH"] = f"{beside}:{environment.get('PATH', '/usr/bin:/bin')}"
        self._child = ChildProcess(
            self._params.argv(self._port), environment=environment, on_line=self._line
        )
        await self._child.start()
        self.http = httpx2.AsyncClient(
            timeout=httpx2.Timeout(600.0, connect=5.0), follow_redirects=False, trust_env=False
        )

    async def _until_ready(self) -> None:
        assert self._child is not None
        ready = asyncio.create_task(self._answering())
        ended = asyncio.create_task(self._child.wait())
        try:
            await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                raise ModelBroken(
                    f"{self._params.name} could not be loaded: the server exited with status "
                    f"{ended.result()}",
                    hint="see the log tail; `appliance doctor` says whether vLLM is installed",
                    details={"log_tail": self.log_tail},
                )
            await ready
        finally:
            for task in (ready, ended):
                task.cancel()
            await asyncio.wait({ready, ended})

    async def _answering(self) -> None:
        assert self.http is not None
        while not await self._is_healthy():  # noqa: ASYNC110 - another program sets no event
            await asyncio.sleep(POLL_S)
        reason = await self._canary(START_CANARY_S)
        if reason:
            raise ModelBroken(
                f"{self._params.name} is up and generates nothing: {reason}",
                details={"log_tail": self.log_tail},
            )
        self.progress = 1.0

    async def _is_healthy(self) -> bool:
        assert self.http is not None
        try:
            return (await self.http.get(f"{self.root}/health", timeout=5.0)).status_code == 200
        except httpx2.HTTPError:
            return False

    async def _canary(self, within_s: float) -> str:
        """One token, or one vector. The empty text when it came, else what came instead."""
        assert self.http is not None
        path, body = "/v1/completions", {"prompt": "a", "max_tokens": 1}
        if self._params.embeddings:
            path, body = "/v1/embeddings", {"input": "a"}
        try:
            answer = await self.http.post(
                f"{self.root}{path}",
                json={"model": self._params.name, **body},
                headers={"authorization": f"Bearer {self._secret}"},
                timeout=within_s,
            )
        except httpx2.HTTPError as error:
            return f"{type(error).__name__} after up to {within_s:.0f} s"
        return "" if answer.status_code == 200 else f"HTTP {answer.status_code} {answer.text[:300]}"

    async def _watch(self) -> None:
        """Until it ends, or no longer generates: then it is killed, and the reason is told."""
        assert self._child is not None
        ended = asyncio.create_task(self._child.wait())
        loop, quiet_s = asyncio.get_running_loop(), self._params.quiet_s
        try:
            while not ended.done():
                await asyncio.wait({ended}, timeout=quiet_s / 4)
                if ended.done() or loop.time() - self.heard_s < quiet_s:
                    continue
                reason = await self._canary(self._params.canary_s)
                if reason and not ended.done() and loop.time() - self.heard_s >= quiet_s:
                    self._fail(f"the server no longer generates: {reason}")
                    self._child.kill()
                    return
                self.heard()
            self._fail(_exit_reason(ended.result()))
        finally:
            ended.cancel()
            await asyncio.wait({ended})

    def _fail(self, reason: str) -> None:
        assert self.failed is not None
        if not self._is_stopping and not self.failed.done():
            self.failed.set_result(reason)

    def _line(self, line: str) -> None:
        if (match := _PROGRESS.search(line)) is not None:
            self.progress = max(self.progress, min(int(match[1] or match[2]), 99) / 100)
        if self._on_line is not None:
            self._on_line(line)


def _free_port() -> int:
    """A port the kernel has to spare. Another program could take it before the server does; then
    the start fails with the server's own words."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _exit_reason(status: int) -> str:
    if status < 0:
        return f"the server was killed by signal {-status}"
    return f"the server exited with status {status}"
