"""The worker process: one model, one socket. Started as `python -m …worker FD`, never imported.

The main thread runs the loop, and reads and writes the socket between its steps; another renders
and tokenises (`preparing.py`), a third writes parked files (`parking.py`). Only the main one
touches the context.
"""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from typing import Any, Protocol

from appliance.engines.chat.template import ChatTemplate
from appliance.engines.llamacpp import frames
from appliance.engines.llamacpp.binding import (
    BINDING_VERSION,
    MAX_SEQUENCES,
    Adapter,
    Context,
    LoadError,
    Log,
    Model,
    check_binding,
    free_bytes,
)
from appliance.engines.llamacpp.channel import Channel, Reporter
from appliance.engines.llamacpp.dates import BeginningDates
from appliance.engines.llamacpp.embedding import Embedder
from appliance.engines.llamacpp.generation import Generation, now_s
from appliance.engines.llamacpp.kv_cache import KvCache
from appliance.engines.llamacpp.loop import Loop
from appliance.engines.llamacpp.params import LlamaCppParams
from appliance.engines.llamacpp.parked_file import model_key
from appliance.engines.llamacpp.parking import ParkingLot
from appliance.engines.llamacpp.preparing import Preparing, Reply, Texts
from appliance.engines.llamacpp.prompt import Preparer
from appliance.engines.llamacpp.said import Said
from appliance.engines.llamacpp.sequences import MemoryKind
from appliance.engines.llamacpp.shortage import Look, is_shortage
from appliance.errors import EngineError, ModelBroken, NoCapacity

REST_AFTER_S = 3.0
"""Idle for this long, conversations are written behind, so that a crash loses none of their KV."""
PROGRESS_STEPS = 50
"""Frames at most that tell how much of the model is read."""


class Work(Protocol):
    """What a worker does all day: a `Loop` that generates or an `Embedder`."""

    @property
    def has_work(self) -> bool: ...

    def cancel(self, request_id: str) -> None: ...

    def step(self) -> None: ...

    def rest(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """All of one instance, ready to serve."""

    model: Model
    context: Context
    template: ChatTemplate
    adapters: dict[str, Adapter]
    key: str


class Worker:
    """Frames to calls. `run` returns when the daemon says stop or goes away."""

    def __init__(
        self,
        channel: Channel,
        reporter: Reporter,
        work: Work,
        preparing: Preparing,
        dates: BeginningDates,
    ) -> None:
        self._channel = channel
        self._dates = dates
        self._reporter = reporter
        self._work = work
        self._preparing = preparing

    def run(self) -> None:
        self._preparing.start()
        is_rested = True
        while True:
            wait_s = 0 if self._work.has_work else None if is_rested else REST_AFTER_S
            received = self._channel.receive(wait_s)
            if received is None:
                return
            for frame in received:
                if frame["type"] == "stop":
                    return
                self._take(frame)
            for ready in self._preparing.take():
                self._begin(ready)
            if self._work.has_work:
                self._work.step()
                self._reporter.step_ended()
                is_rested = False
            elif wait_s and not received and not self._preparing.is_busy:
                self._work.rest()
                self._dates.write()
                is_rested = True

    def _take(self, frame: dict[str, Any]) -> None:
        match frame["type"]:
            case "generate" | "count" | "embed":
                self._preparing.put(frame)
            case "cancel":
                self._preparing.cancel(frame["id"])
                self._work.cancel(frame["id"])
                self._reporter.cancelled(frame["id"])
            case "ping":
                self._channel.send({"type": "pong"})
            case other:
                raise frames.FrameError(f"unknown frame {other!r}")

    def _begin(self, ready: Generation | Texts | Reply) -> None:
        match ready:
            case Reply(frame):
                self._channel.send(frame)
            case Texts(request_id, tokens):
                assert isinstance(self._work, Embedder)
                self._work.submit(request_id, tokens)
            case Generation():
                assert isinstance(self._work, Loop)
                self._work.submit(ready)


def load(params: LlamaCppParams, channel: Channel, log: Log) -> Loaded:
    """Read the model and make it ready, telling the daemon how far. Raises `LoadError`,
    `ModelBroken` or `NoCapacity`."""
    check_binding()
    look = Look(params.promised_bytes, free_bytes)
    look.before_weights()
    told = -1

    def progress(fraction: float) -> None:
        nonlocal told
        if int(fraction * PROGRESS_STEPS) != told:
            told = int(fraction * PROGRESS_STEPS)
            channel.send({"type": "loading", "progress": fraction})

    model = Model(params, progress)

    def create() -> Context | None:
        try:
            return Context(model, params, sequence_count(params, model))
        except LoadError:
            if any(params.promised_bytes) and is_shortage(log.said):
                return None
            raise

    context = look.allocate(create, log.said)
    adapters = {name: Adapter(model, path) for name, path in params.adapters.items()}
    vocab = model.vocab
    template = ChatTemplate(
        params.chat_template or model.chat_template or "",
        bos_token=vocab.text_of(vocab.bos),
        eos_token=vocab.text_of(vocab.eos),
    )
    key = model_key(params.model_path, BINDING_VERSION, params.kv_type)
    return Loaded(model, context, template, adapters, key)


def sequence_count(params: LlamaCppParams, model: Model) -> int:
    """Sequence ids: one per slot, and as many again for idle conversations where they cost
    nothing but cells (a recurrent state or a window is allocated per sequence)."""
    if model.is_recurrent or model.window_cells or params.embeddings:
        return params.slots
    return min(2 * params.slots + 2, MAX_SEQUENCES)


def make_work(params: LlamaCppParams, loaded: Loaded, said: Said, reporter: Reporter) -> Work:
    model, context = loaded.model, loaded.context
    sequences = sequence_count(params, model)
    if params.embeddings:
        return Embedder(context, sequences=sequences, sink=reporter)
    lot = ParkingLot(
        loaded.key,
        folder=params.park_dir,
        ram_bytes=params.park_ram_bytes,
        disk_bytes=params.park_disk_bytes,
    )
    kind = MemoryKind(model.is_recurrent, model.window_cells)
    return Loop(
        model,
        context,
        KvCache(context, lot, sequences=sequences, kind=kind),
        slots=params.slots,
        step_tokens=params.ubatch_tokens,
        adapters=loaded.adapters,
        said=said,
        sink=reporter,
    )


def ready_frame(loaded: Loaded, load_seconds: float) -> dict[str, Any]:
    model = loaded.model
    return {
        "type": "ready",
        "model_hash": loaded.key,
        "load_seconds": load_seconds,
        "supports_thinking": loaded.template.traits.thinking_switch,
        "details": {
            "description": model.description,
            "kv_tokens": loaded.context.cells,
            "trained_window": model.trained_window,
            "sliding_window": model.window_cells,
            "is_recurrent": model.is_recurrent,
            "embedding_size": model.n_embd,
        },
    }


def why_not(
    error: LoadError | ModelBroken | NoCapacity, params: LlamaCppParams, log: str
) -> EngineError | NoCapacity:
    """What a failed load is to the daemon: a card's memory comes back, a bad file gets no better.
    What host RAM alone refuses was asked for by the file, or would never have been placed."""
    if isinstance(error, LoadError) and params.promised_bytes and is_shortage(log):
        return NoCapacity(f"{error}: its memory was refused")
    return error if isinstance(error, NoCapacity) else ModelBroken(str(error))


def first_frame(channel: Channel) -> dict[str, Any] | None:
    """What to load; None when the daemon is gone."""
    while True:
        received = channel.receive(None)
        if received is None or received:
            return received[0] if received else None


def main() -> int:
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    order = first_frame(channel)
    if order is None:
        return 0
    params = LlamaCppParams.from_json(order["params"])
    log = Log(lambda line: print(line, file=sys.stderr, flush=True))
    started_s = now_s()
    try:
        loaded = load(params, channel, log)
    except (LoadError, ModelBroken, NoCapacity) as error:
        log.flush()
        channel.send({"type": "broken", "error": why_not(error, params, log.said).to_json()})
        return 1
    reporter = Reporter(channel)
    dates = BeginningDates(params.park_dir and params.park_dir / f"{loaded.key[:16]}-dates.json")
    preparer = Preparer(
        loaded.model.vocab,
        loaded.template,
        window=min(params.context_window, loaded.context.cells),
        makes_checkpoints=loaded.model.is_recurrent or loaded.model.window_cells > 0,
        dates=dates,
    )
    work = make_work(params, loaded, preparer.said, reporter)
    preparing = Preparing(
        preparer, adapters=loaded.adapters, embeds=params.embeddings, wake=channel.wake
    )
    channel.send(ready_frame(loaded, now_s() - started_s))
    Worker(channel, reporter, work, preparing, dates).run()
    dates.write()
    work.close()
    loaded.context.close()
    loaded.model.close()
    log.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
