"""The worker's end of the socket: frames in without waiting, frames out without blocking.

A daemon that is slow to read must not stop generation, so what it has not taken waits here, up to
a limit.
"""

from __future__ import annotations

import math
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from appliance.engines.llamacpp import codec, frames
from appliance.errors import ApplianceError, EngineError
from appliance.types import Completion, Delta, Progress

READ_BYTES = 1 << 16
BEAT_S = 0.04
"""Between two frames of deltas: twenty-five a second look like a stream to any reader."""
MAX_UNSENT_BYTES = 256 << 20
"""With this much unread by the daemon, it is not coming back: the worker ends."""


class Channel:
    """Frames over one connection. `send` and `wake` may be called from any thread."""

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
    """The loop's sink: collects deltas and sends them as one frame.

    A frame costs the daemon, each follower and their wake-ups several times what a token in it
    does, and on a machine without a card that is time the model's threads do not have. So what is
    said within `BEAT_S` of the last frame waits for a later step; a request's first words do not.
    """

    def __init__(self, channel: Channel, clock: Callable[[], float] = time.monotonic) -> None:
        self._channel = channel
        self._clock = clock
        self._deltas: list[tuple[str, list[Any]]] = []
        self._sent_s = -math.inf
        self._begun: set[str] = set()
        self._is_urgent = False

    def deltas(self, request_id: str, deltas: list[Delta]) -> None:
        for delta in deltas:
            self._add(request_id, codec.delta_to_json(delta))
            if request_id not in self._begun and not isinstance(delta, Progress):
                self._begun.add(request_id)
                self._is_urgent = True

    def done(self, request_id: str, completion: Completion) -> None:
        self._over(request_id)
        body = codec.completion_to_json(completion)
        self._channel.send({"type": "done", "id": request_id, "completion": body})

    def failed(self, request_id: str, error: ApplianceError) -> None:
        self._over(request_id)
        self._channel.send({"type": "failed", "id": request_id, "error": error.to_json()})

    def embedded(self, request_id: str, vectors: list[list[float]]) -> None:
        self._channel.send({"type": "embedded", "id": request_id, "vectors": vectors})

    def step_ended(self) -> None:
        """Send what has waited long enough, or must not wait."""
        if self._deltas and (self._is_urgent or self._clock() - self._sent_s >= BEAT_S):
            self._flush()

    def cancelled(self, request_id: str) -> None:
        """Nobody listens to it any more."""
        self._begun.discard(request_id)

    def _add(self, request_id: str, delta: list[Any]) -> None:
        """Text that follows text of the same answer joins it."""
        if self._deltas and delta[0] in ("text", "thinking"):
            last_id, last = self._deltas[-1]
            if last_id == request_id and last[0] == delta[0]:
                last[1] += delta[1]
                return
        self._deltas.append((request_id, delta))

    def _over(self, request_id: str) -> None:
        self._begun.discard(request_id)
        self._flush()

    def _flush(self) -> None:
        if self._deltas:
            self._channel.send({"type": "deltas", "items": self._deltas})
            self._deltas, self._sent_s, self._is_urgent = [], self._clock(), False
