"""The worker process: one model, one socket. Started as `python -m …worker FD`, never imported.

Three threads. The main one runs the loop and reads and writes the socket between steps; one
renders and tokenises prompts, so that a long prompt does not hold up running streams; none
other touches the context. The socket is written without blocking: a daemon that is slow to read
must not stop generation, so what it has not taken waits here, bounded.
"""

from __future__ import annotations

import os
import queue
import select
import socket
import sys
import threading
from collections.abc import Callable, Collection
from typing import Any

from appliance.engines.chat.template import ChatTemplate
from appliance.engines.llamacpp import codec, frames
from appliance.engines.llamacpp.binding import (
    BINDING_VERSION,
    MAX_SEQUENCES,
    Adapter,
    Context,
    LoadError,
    Log,
    Model,
    check_binding,
)
from appliance.engines.llamacpp.generation import Generation, now_s
from appliance.engines.llamacpp.kv_cache import KvCache
from appliance.engines.llamacpp.loop import Loop
from appliance.engines.llamacpp.params import LlamaCppParams
from appliance.engines.llamacpp.parked_file import model_key
from appliance.engines.llamacpp.parking import ParkingLot
from appliance.engines.llamacpp.prompt import Preparer
from appliance.engines.llamacpp.sequences import MemoryKind
from appliance.errors import ApplianceError, BadRequest, EngineError, ModelBroken
from appliance.types import Completion, Delta
from appliance.wire import native

READ_BYTES = 1 << 16
REST_AFTER_S = 3.0
"""Idle for this long, conversations are written behind, so that a crash loses none of their KV."""
MAX_UNSENT_BYTES = 256 << 20
"""With this much unread by the daemon, it is not coming back: the worker ends."""


class Channel:
    """The socket: frames in without waiting, frames out without blocking."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._decoder = frames.FrameDecoder()
        self._unsent = bytearray()
        self._lock = threading.Lock()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def send(self, body: dict[str, Any]) -> None:
        data = frames.encode(body)
        with self._lock:
            self._unsent += data
            if len(self._unsent) > MAX_UNSENT_BYTES:
                raise EngineError("the daemon does not read what the worker sends")
            self._flush()

    def wake(self) -> None:
        """End a `receive` that waits; from any thread."""
        os.write(self._wake_write, b"!")

    def receive(self, timeout_s: float | None) -> list[dict[str, Any]] | None:
        """Frames that have arrived, waiting up to `timeout_s`; None when the daemon is gone."""
        if timeout_s != 0:
            readers = [self._connection.fileno(), self._wake_read]
            writers = [self._connection.fileno()] if self._unsent else []
            ready, writable, _ = select.select(readers, writers, [], timeout_s)
            if self._wake_read in ready:
                os.read(self._wake_read, READ_BYTES)
            if writable:
                with self._lock:
                    self._flush()
        received: list[dict[str, Any]] = []
        while True:
            try:
                data = self._connection.recv(READ_BYTES)
            except BlockingIOError:
                return received
            except ConnectionError:
                return None
            if not data:
                return None
            received += self._decoder.feed(data)

    def _flush(self) -> None:
        while self._unsent:
            try:
                sent = self._connection.send(self._unsent)
            except BlockingIOError:
                return
            del self._unsent[:sent]


class Reporter:
    """The loop's sink: collects a step's deltas and sends them as one frame."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._deltas: list[Any] = []

    def deltas(self, request_id: str, deltas: list[Delta]) -> None:
        self._deltas += ([request_id, codec.delta_to_json(delta)] for delta in deltas)

    def done(self, request_id: str, completion: Completion) -> None:
        self.flush()
        body = codec.completion_to_json(completion)
        self._channel.send({"type": "done", "id": request_id, "completion": body})

    def failed(self, request_id: str, error: ApplianceError) -> None:
        self.flush()
        self._channel.send({"type": "failed", "id": request_id, "error": error.to_json()})

    def flush(self) -> None:
        if self._deltas:
            self._channel.send({"type": "deltas", "items": self._deltas})
            self._deltas = []


class Worker:
    """Frames to calls. `run` returns when the daemon says stop or goes away."""

    def __init__(
        self, channel: Channel, loop: Loop, preparer: Preparer, adapters: Collection[str]
    ) -> None:
        self._channel = channel
        self._loop = loop
        self._preparer = preparer
        self._adapters = adapters
        self._to_prepare: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._prepared: queue.SimpleQueue[Generation] = queue.SimpleQueue()
        self._cancelled: set[str] = set()
        self._arrivals = 0

    def run(self, reporter: Reporter) -> None:
        preparing = threading.Thread(target=self._prepare_all, name="prepare", daemon=True)
        preparing.start()
        is_rested = True
        while True:
            wait_s = 0 if self._loop.has_work else None if is_rested else REST_AFTER_S
            received = self._channel.receive(wait_s)
            if received is None:
                return
            if not received and wait_s == REST_AFTER_S and self._prepared.empty():
                self._loop.rest()
                is_rested = True
            for frame in received:
                if frame["type"] == "stop":
                    return
                self._take(frame)
            self._join_prepared()
            if self._loop.has_work:
                self._loop.step()
                reporter.flush()
                is_rested = False

    def _take(self, frame: dict[str, Any]) -> None:
        match frame["type"]:
            case "generate":
                self._arrivals += 1
                self._to_prepare.put(frame | {"arrival": self._arrivals, "received_s": now_s()})
            case "count" | "embed":
                self._to_prepare.put(frame)
            case "cancel":
                self._cancelled.add(frame["id"])
                self._loop.cancel(frame["id"])
            case "ping":
                self._channel.send({"type": "pong"})
            case other:
                raise frames.FrameError(f"unknown frame {other!r}")

    def _join_prepared(self) -> None:
        while not self._prepared.empty():
            generation = self._prepared.get()
            if generation.request.request_id in self._cancelled:
                self._cancelled.discard(generation.request.request_id)
            else:
                self._loop.submit(generation)

    def _prepare_all(self) -> None:
        while True:
            frame = self._to_prepare.get()
            if frame is None:
                return
            try:
                self._prepare(frame)
            except ApplianceError as error:
                self._refuse(frame, error)
            except Exception as error:  # the wall of one request
                self._refuse(frame, EngineError(f"preparing the prompt failed: {error!r}"))

    def _prepare(self, frame: dict[str, Any]) -> None:
        if frame["type"] == "count":
            messages = native.messages_from_json(frame["messages"])
            tools = tuple(native.tool_from_json(tool) for tool in frame["tools"])
            count = self._preparer.count(messages, tools)
            self._channel.send({"type": "counted", "id": frame["id"], "tokens": count})
            return
        request = codec.request_from_json(frame["request"])
        if request.adapter is not None and request.adapter not in self._adapters:
            raise BadRequest(f"adapter {request.adapter!r} is not configured for this model")
        prepared = self._preparer.prepare(request)
        self._prepared.put(Generation(request, prepared, frame["arrival"], frame["received_s"]))
        self._channel.wake()

    def _refuse(self, frame: dict[str, Any], error: ApplianceError) -> None:
        self._channel.send({"type": "failed", "id": frame["id"], "error": error.to_json()})
        self._channel.wake()


def load(params: LlamaCppParams, tell: Callable[[dict[str, Any]], None]) -> tuple[Model, Context]:
    """Model and context, or `LoadError`."""
    check_binding()
    told = -1

    def progress(fraction: float) -> None:
        nonlocal told
        if int(fraction * 50) != told:
            told = int(fraction * 50)
            tell({"type": "loading", "progress": fraction})

    model = Model(params, progress)
    return model, Context(model, params, sequence_count(params, model))


def sequence_count(params: LlamaCppParams, model: Model) -> int:
    """Sequence ids: one per slot, and as many again for idle conversations where they cost
    nothing but cells (a recurrent state or a window is allocated per sequence)."""
    if model.is_recurrent or model.window_cells or params.embeddings:
        return params.slots
    return min(2 * params.slots + 2, MAX_SEQUENCES)


def main() -> int:
    connection = socket.socket(fileno=int(sys.argv[1]))
    channel = Channel(connection)
    received = channel.receive(None)
    while not received:
        if received is None:
            return 0
        received = channel.receive(None)
    params = LlamaCppParams.from_json(received[0]["params"])
    native_log = Log(lambda line: print(line, file=sys.stderr, flush=True))
    started_s = now_s()
    try:
        model, context = load(params, channel.send)
        adapters = {name: Adapter(model, path) for name, path in params.adapters.items()}
        vocab = model.vocab
        template = ChatTemplate(
            params.chat_template or model.chat_template or "",
            bos_token=vocab.text_of(vocab.bos),
            eos_token=vocab.text_of(vocab.eos),
        )
    except LoadError as error:
        channel.send({"type": "broken", "error": ModelBroken(str(error)).to_json()})
        return 1
    except ModelBroken as error:
        channel.send({"type": "broken", "error": error.to_json()})
        return 1
    preparer = Preparer(
        vocab,
        template,
        window=min(params.context_window, context.cells),
        makes_checkpoints=model.is_recurrent or model.window_cells > 0,
    )
    reporter = Reporter(channel)
    key = model_key(params.model_path, BINDING_VERSION, params.kv_type)
    cache = KvCache(
        context,
        ParkingLot(
            key,
            folder=params.park_dir,
            ram_bytes=params.park_ram_bytes,
            disk_bytes=params.park_disk_bytes,
        ),
        sequences=sequence_count(params, model),
        kind=MemoryKind(model.is_recurrent, model.window_cells),
    )
    loop = Loop(
        model,
        context,
        cache,
        slots=params.slots,
        step_tokens=params.ubatch_tokens,
        adapters=adapters,
        sink=reporter,
    )
    channel.send(
        {
            "type": "ready",
            "model_hash": key,
            "load_seconds": now_s() - started_s,
            "supports_thinking": template.traits.thinking_switch,
            "details": {
                "description": model.description,
                "kv_tokens": context.cells,
                "trained_window": model.trained_window,
                "sliding_window": model.window_cells,
                "is_recurrent": model.is_recurrent,
                "embedding_size": model.n_embd,
            },
        }
    )
    Worker(channel, loop, preparer, adapters).run(reporter)
    loop.close()
    context.close()
    model.close()
    del native_log
    return 0


if __name__ == "__main__":
    sys.exit(main())
