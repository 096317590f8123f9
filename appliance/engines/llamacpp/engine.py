"""The daemon's side of one llama.cpp worker: starts it, talks frames, notices when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from appliance.clock import new_id
from appliance.engines.base import EngineFacts, InstanceState
from appliance.engines.llamacpp import codec, frames
from appliance.engines.llamacpp.params import LlamaCppParams
from appliance.engines.llamacpp.shortage import is_shortage
from appliance.engines.process import ChildProcess, clean_environment
from appliance.errors import (
    ApplianceError,
    CutStream,
    EngineError,
    EngineTimeout,
    ModelBroken,
    NoCapacity,
)
from appliance.types import Completion, Delta, GenerateRequest, Message, ToolSpec
from appliance.wire import native

PING_INTERVAL_S = 5.0
"""An idle worker that was stopped is noticed this much, and one stall timeout, later."""

SPIN_COUNT = "100"
"""How long an OpenMP thread spins at a barrier before it sleeps (docs/adr/0010)."""

READ_BYTES = 1 << 18
_PACKAGE_ROOT = Path(__file__).resolve().parents[3]

Frame = dict[str, Any]


class LlamaCppEngine:
    """One loaded copy of a GGUF model in a worker process. See `engines.base.Engine`.

    `precheck` looks at the file before the child is started and raises `ModelBroken`; it runs in
    a thread. `on_log` gets the worker's log lines.
    """

    def __init__(
        self,
        params: LlamaCppParams,
        *,
        precheck: Callable[[Path], None] | None = None,
        on_log: Callable[[str], None] | None = None,
    ) -> None:
        self._params = params
        self._precheck = precheck
        self._on_log = on_log
        self._state = InstanceState.STOPPED
        self._facts = EngineFacts(params.context_window, params.slots)
        self._child: ChildProcess | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._streams: dict[str, asyncio.Queue[Frame]] = {}
        self._ready: asyncio.Future[Frame] | None = None
        self._failed: asyncio.Future[str] | None = None
        self._heard_s = 0.0
        self._load_progress = 0.0

    @property
    def state(self) -> InstanceState:
        return self._state

    @property
    def facts(self) -> EngineFacts:
        return self._facts

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    @property
    def load_progress(self) -> float:
        """How much of the model is read, 0 to 1."""
        return self._load_progress

    @property
    def log_tail(self) -> str:
        return self._child.log_tail if self._child is not None else ""

    async def __aenter__(self) -> Self:
        assert self._child is None, "an engine is entered once"
        self._state = InstanceState.STARTING
        loop = asyncio.get_running_loop()
        self._ready, self._failed = loop.create_future(), loop.create_future()
        try:
            await self._check_file()
            await self._start()
            async with asyncio.timeout(self._params.start_timeout_s):
                ready = await self._ready
        except BaseException as error:
            self._state = InstanceState.FAILED
            await self._end(grace_s=0)
            if isinstance(error, TimeoutError):
                raise EngineTimeout(
                    f"{self._name} was not ready after {self._params.start_timeout_s:g} s",
                    details={"log_tail": self.log_tail},
                ) from error
            raise
        self._facts = EngineFacts(
            context_window=self._params.context_window,
            slots=self._params.slots,
            supports_tools=not self._params.embeddings,
            supports_thinking=ready["supports_thinking"],
            supports_embeddings=self._params.embeddings,
            model_hash=ready.get("model_hash", ""),
            load_seconds=ready["load_seconds"],
            details=ready["details"],
        )
        self._state = InstanceState.READY
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._end(grace_s=self._params.stop_grace_s)
        if self._state is not InstanceState.FAILED:
            self._state = InstanceState.STOPPED

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Delta | Completion]:
        stream = self._open(request.request_id)
        is_over = False
        try:
            await self._send(
                {
                    "type": "generate",
                    "id": request.request_id,
                    "request": codec.request_to_json(request),
                }
            )
            while not is_over:
                frame = await stream.get()
                match frame["type"]:
                    case "delta":
                        yield codec.delta_from_json(frame["delta"])
                    case "done":
                        is_over = True
                        yield codec.completion_from_json(frame["completion"])
                    case _:
                        is_over = True
                        raise self._error_of(frame)
        finally:
            self._streams.pop(request.request_id, None)
            if not is_over:
                self._post({"type": "cancel", "id": request.request_id})

    async def count_tokens(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> int:
        frame = await self._ask(
            {
                "type": "count",
                "messages": native.messages_to_json(messages),
                "tools": [native.tool_to_json(tool) for tool in tools],
            }
        )
        return int(frame["tokens"])

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        frame = await self._ask({"type": "embed", "texts": list(texts)})
        vectors: list[list[float]] = frame["vectors"]
        return vectors

    async def wait_failed(self) -> str:
        assert self._failed is not None, "enter the engine first"
        return await asyncio.shield(self._failed)

    @property
    def _name(self) -> str:
        return f"model {self._params.model_path.name}"

    async def _check_file(self) -> None:
        path = self._params.model_path

        def check() -> None:
            if not path.is_file():
                raise ModelBroken(f"model file {path} does not exist", hint="appliance models")
            if not os.access(path, os.R_OK):
                raise ModelBroken(f"model file {path} cannot be read")
            if self._precheck is not None:
                self._precheck(path)

        await asyncio.to_thread(check)

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            environment = clean_environment(os.environ, self._params.environment)
            environment.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
            environment["PYTHONPATH"] = str(_PACKAGE_ROOT)
            self._child = ChildProcess(
                [
                    self._params.python or sys.executable,
                    "-P",
                    "-m",
                    "appliance.engines.llamacpp.worker",
                    str(theirs.fileno()),
                ],
                environment=environment,
                pass_fds=[theirs.fileno()],
                on_line=self._on_log,
            )
            await self._child.start()
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._heard_s = asyncio.get_running_loop().time()
        self._supervision = asyncio.create_task(self._supervise(reader))
        await self._send({"type": "load", "params": self._params.to_json()})

    async def _end(self, grace_s: float) -> None:
        """Stop the child and wait for our own tasks."""
        if self._child is None:
            return
        ending, self._state = self._state, InstanceState.STOPPED
        self._post({"type": "stop"})
        if ending is not InstanceState.FAILED and self._child.returncode is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._child.wait()
        await self._child.stop(0)
        if self._writer is not None:
            self._writer.close()
        self._fail_streams({"type": "ended", "reason": "the instance was stopped"})
        if self._supervision is not None:
            await self._supervision
        if self._failed is not None and not self._failed.done():
            self._failed.cancel()
        self._state = ending

    async def _supervise(self, reader: asyncio.StreamReader) -> None:
        """Ends when the child is gone. A task of its own (its parent is this engine, which awaits
        it in `_end`), because an instance may be entered by one task and left by another."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read(reader))
            tasks.create_task(self._watch_exit())
            tasks.create_task(self._watch_progress())

    async def _read(self, reader: asyncio.StreamReader) -> None:
        decoder = frames.FrameDecoder()
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await reader.read(READ_BYTES)
            except ConnectionError:
                return
            if not data:
                return
            self._heard_s = loop.time()
            try:
                for frame in decoder.feed(data):
                    self._dispatch(frame)
            except (frames.FrameError, KeyError, TypeError, ValueError) as error:
                self._fail(f"the worker sent nonsense: {error!r}")
                assert self._child is not None
                self._child.kill()
                return

    def _dispatch(self, frame: Frame) -> None:
        match frame["type"]:
            case "deltas":
                for request_id, delta in frame["items"]:
                    stream = self._streams.get(request_id)
                    if stream is not None:
                        stream.put_nowait({"type": "delta", "delta": delta})
            case "loading":
                self._load_progress = frame["progress"]
            case "ready":
                assert self._ready is not None
                if not self._ready.done():
                    self._ready.set_result(frame)
            case "broken":
                assert self._ready is not None
                if not self._ready.done():
                    self._ready.set_exception(self._error_of(frame | {"type": "failed"}))
            case "pong":
                pass
            case _:
                stream = self._streams.get(frame["id"])
                if stream is not None:
                    stream.put_nowait(frame)

    async def _watch_exit(self) -> None:
        assert self._child is not None
        status = await self._child.wait()
        self._fail(_exit_reason(status), self._died_loading(status))

    async def _watch_progress(self) -> None:
        """Ping an idle worker, and kill one that says nothing though it has something to do."""
        loop = asyncio.get_running_loop()
        assert self._child is not None
        ping_after_s = min(PING_INTERVAL_S, self._params.stall_timeout_s / 3)
        while self._child.returncode is None:
            await asyncio.sleep(min(1.0, self._params.stall_timeout_s / 4))
            quiet_s = loop.time() - self._heard_s
            if self._state is InstanceState.STARTING:
                continue
            if quiet_s > ping_after_s:
                self._post({"type": "ping"})
            if quiet_s > ping_after_s + self._params.stall_timeout_s or (
                self._streams and quiet_s > self._params.stall_timeout_s
            ):
                self._fail(f"the worker showed no progress for {quiet_s:.0f} s")
                self._child.kill()
                return

    def _died_loading(self, status: int) -> type[ApplianceError]:
        """What a death in the middle of a load says of the next try. The library aborts on some
        refused allocations; the kernel kills whom it finds too large. Any other death is the
        file's doing until shown otherwise."""
        if self._params.promised_bytes and is_shortage(self.log_tail):
            return NoCapacity
        return EngineError if status == -signal.SIGKILL else ModelBroken

    def _fail(self, reason: str, at_load: type[ApplianceError] = ModelBroken) -> None:
        """The instance is over, by itself; tell everyone who waits."""
        if self._state in (InstanceState.STOPPED, InstanceState.FAILED):
            return
        self._state = InstanceState.FAILED
        assert self._ready is not None
        assert self._failed is not None
        if not self._ready.done():
            self._ready.set_exception(
                at_load(
                    f"{self._name} could not be loaded: {reason}",
                    hint="see the log tail; is the file complete?",
                    details={"log_tail": self.log_tail},
                )
            )
        if not self._failed.done():
            self._failed.set_result(reason)
        self._fail_streams({"type": "ended", "reason": reason})

    def _fail_streams(self, frame: Frame) -> None:
        for stream in self._streams.values():
            stream.put_nowait(frame)

    def _error_of(self, frame: Frame) -> ApplianceError:
        if frame["type"] == "ended":
            return EngineError(
                f"{self._name}: {frame['reason']}", details={"log_tail": self.log_tail}
            )
        error = codec.error_from_json(frame["error"])
        if isinstance(error, EngineError):
            error.details.setdefault("log_tail", self.log_tail)
        return error

    def _open(self, request_id: str) -> asyncio.Queue[Frame]:
        if self._state is not InstanceState.READY:
            raise EngineError(f"{self._name} is {self._state.value}, not ready")
        assert request_id not in self._streams, "request ids are used once"
        # Unbounded here, bounded by max_tokens: one frame a token.
        stream: asyncio.Queue[Frame] = asyncio.Queue()
        if not self._streams:
            self._heard_s = asyncio.get_running_loop().time()
        self._streams[request_id] = stream
        return stream

    async def _ask(self, frame: Frame) -> Frame:
        """Send a question and return its answer; raises what the worker refuses with."""
        request_id = new_id("ask")
        stream = self._open(request_id)
        try:
            await self._send(frame | {"id": request_id})
            answer = await stream.get()
        finally:
            self._streams.pop(request_id, None)
        if answer["type"] in ("failed", "ended"):
            raise self._error_of(answer)
        return answer

    async def _send(self, frame: Frame) -> None:
        try:
            self._post(frame)
            assert self._writer is not None
            await self._writer.drain()
        except ConnectionError as error:
            raise CutStream(f"{self._name}: the worker closed its socket") from error

    def _post(self, frame: Frame) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frames.encode(frame))


def _exit_reason(status: int) -> str:
    if status < 0:
        return f"the worker was killed by signal {-status}"
    return f"the worker exited with status {status}"
