"""The thread that renders, tokenises and compiles, so that no prompt holds up running streams."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeAlias

from appliance.engines.llamacpp import codec
from appliance.engines.llamacpp.generation import Generation, now_s
from appliance.engines.llamacpp.prompt import Preparer
from appliance.errors import ApplianceError, BadRequest, EngineError
from appliance.wire import native

MAX_TEXTS = 2048
"""Texts in one embedding request, as the well-known APIs have it."""


@dataclass(frozen=True, slots=True)
class Texts:
    """An embedding request, tokenised."""

    request_id: str
    tokens: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """Nothing is to be run: this frame is the answer."""

    frame: dict[str, Any]


Ready: TypeAlias = Generation | Texts | Reply


class Preparing:
    """Frames in, in order; what they became out of `take`. `wake` is called for each."""

    def __init__(
        self,
        preparer: Preparer,
        *,
        adapters: Collection[str],
        embeds: bool,
        wake: Callable[[], None],
    ) -> None:
        self._preparer = preparer
        self._adapters = adapters
        self._embeds = embeds
        self._wake = wake
        self._frames: queue.SimpleQueue[tuple[int, float, dict[str, Any]]] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[tuple[str, Ready]] = queue.SimpleQueue()
        self._expected: set[str] = set()
        self._cancelled: set[str] = set()
        self._arrivals = 0

    def start(self) -> None:
        threading.Thread(target=self._run, name="prepare", daemon=True).start()

    def put(self, frame: dict[str, Any]) -> None:
        self._arrivals += 1
        self._expected.add(frame["id"])
        self._frames.put((self._arrivals, now_s(), frame))

    def cancel(self, request_id: str) -> None:
        """Whatever it becomes, `take` will not return it."""
        if request_id in self._expected:
            self._cancelled.add(request_id)

    @property
    def is_busy(self) -> bool:
        return bool(self._expected)

    def take(self) -> list[Ready]:
        """What has been prepared since."""
        taken: list[Ready] = []
        while not self._ready.empty():
            request_id, ready = self._ready.get()
            self._expected.discard(request_id)
            if request_id in self._cancelled:
                self._cancelled.discard(request_id)
            else:
                taken.append(ready)
        return taken

    def _run(self) -> None:
        while True:
            arrival, received_s, frame = self._frames.get()
            try:
                ready = self._prepare(arrival, received_s, frame)
            except ApplianceError as error:
                ready = _refusal(frame, error)
            except Exception as error:  # the wall of one request
                ready = _refusal(frame, EngineError(f"the prompt cannot be prepared: {error!r}"))
            self._ready.put((frame["id"], ready))
            self._wake()

    def _prepare(self, arrival: int, received_s: float, frame: dict[str, Any]) -> Ready:
        match frame["type"]:
            case "generate" if self._embeds:
                raise BadRequest("this instance embeds; it does not generate")
            case "generate":
                request = codec.request_from_json(frame["request"])
                if request.adapter is not None and request.adapter not in self._adapters:
                    raise BadRequest(f"adapter {request.adapter!r} is not configured")
                prepared = self._preparer.prepare(request)
                return Generation(request, prepared, arrival, received_s)
            case "embed" if not self._embeds:
                raise BadRequest(
                    "this instance generates; it does not embed",
                    hint="set `embeddings = true` for the model",
                )
            case "embed":
                if len(frame["texts"]) > MAX_TEXTS:
                    raise BadRequest(
                        f"{len(frame['texts'])} texts are over the {MAX_TEXTS} allowed"
                    )
                texts = tuple(self._preparer.text(text) for text in frame["texts"])
                return Texts(frame["id"], texts)
            case "count":
                messages = native.messages_from_json(frame["messages"])
                tools = tuple(native.tool_from_json(tool) for tool in frame["tools"])
                count = self._preparer.count(messages, tools)
                return Reply({"type": "counted", "id": frame["id"], "tokens": count})
            case other:
                raise BadRequest(f"unknown question {other!r}")


def _refusal(frame: dict[str, Any], error: ApplianceError) -> Reply:
    return Reply({"type": "failed", "id": frame["id"], "error": error.to_json()})
