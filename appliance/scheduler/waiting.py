"""The fair queue: who waits for which model, in what order, and how often each was overtaken.

One number orders everything, the *key*: the moment from which a request counts as first in line.

    key = arrival + patience of its priority + how far its agent is ahead of its fair share
    key = min(key, latest start that still meets the deadline)

The key never changes while a request waits, which buys three things at once. *Ageing*: a background
request that came five minutes ago stands before an interactive one of now. *Fairness*: an agent's
lead is that of start-time fair queueing (Goyal, Vin, Cheng 1996): each request moves the agent's
virtual finish by `cost / weight` seconds, and a lead over the queue's virtual time is added to the
key, so one agent's flood lines up behind its own backlog and not behind everybody's. *A bound*:
what arrives after a request's key cannot stand before it, whatever its priority.

The key orders; it does not yet bound how many may pass while a request waits for a model that is
not loaded. For that each waiting request counts its overtakers: requests that arrived later, are
not more urgent, and were granted first. At `Policy.max_overtaken` it is *due*, and served next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from appliance.scheduler.values import StepRequested
from appliance.types import Priority

PATIENCE_S = {Priority.INTERACTIVE: 0.0, Priority.NORMAL: 20.0, Priority.BACKGROUND: 300.0}
"""How long one priority outranks the next: a person waits seconds, a nightly batch minutes."""

MAX_LEAD_S = 600.0
"""The most that an agent's own backlog can push a request back: bounds the wait of a flooder."""

_IDLE_AGENTS_KEPT = 4096
"""Agents whose virtual finish is remembered; beyond it the ones with no lead are forgotten."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A request in the queue. `seq` is its place in arrival order."""

    step: StepRequested
    model: str
    seq: int
    since_s: float
    key: float
    start_tag: float
    cost_s: float
    overtaken: int = 0


class WaitingQueue:
    """All waiting requests, by model. Owned by the core."""

    def __init__(self, max_overtaken: int) -> None:
        self._max_overtaken = max_overtaken
        self._by_id: dict[str, Waiting] = {}
        self._by_model: dict[str, dict[int, Waiting]] = {}
        self._heaps: dict[str, list[tuple[float, int]]] = {}
        self._finish: dict[str, float] = {}
        self._virtual = 0.0
        self._due = 0
        self._next_seq = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_id

    def __iter__(self) -> Iterator[Waiting]:
        """In arrival order within a model, models in the order they were first asked for."""
        for requests in self._by_model.values():
            yield from requests.values()

    def models(self) -> list[str]:
        return [model for model, requests in self._by_model.items() if requests]

    def count(self, model: str) -> int:
        return len(self._by_model.get(model, ()))

    def model_of(self, request_id: str) -> str | None:
        waiting = self._by_id.get(request_id)
        return waiting.model if waiting else None

    def position(self, request_id: str) -> tuple[int, int]:
        """Place among those who wait for the same model (from 1; 0 if unknown), and their count."""
        waiting = self._by_id.get(request_id)
        if waiting is None:
            return 0, 0
        requests = self._by_model[waiting.model].values()
        place = sum(other.key <= waiting.key for other in requests)
        return place, len(requests)

    def of_model(self, model: str) -> Iterator[Waiting]:
        return iter(self._by_model.get(model, {}).values())

    def add(self, step: StepRequested, model: str, cost_s: float, now_s: float) -> Waiting:
        """Queues a step; `cost_s` is the seconds of a slot it will take, as predicted."""
        assert step.request_id not in self._by_id, f"{step.request_id} already waits"
        start = max(self._virtual, self._finish.get(step.agent, 0.0))
        self._finish[step.agent] = start + cost_s / step.weight
        key = now_s + PATIENCE_S[step.priority] + min(start - self._virtual, MAX_LEAD_S)
        if step.deadline_s is not None:
            key = min(key, step.deadline_s - cost_s)
        waiting = Waiting(step, model, self._next_seq, now_s, key, start, cost_s)
        self._next_seq += 1
        self._by_id[step.request_id] = waiting
        self._by_model.setdefault(model, {})[waiting.seq] = waiting
        heappush(self._heaps.setdefault(model, []), (key, waiting.seq))
        return waiting

    def cancel(self, request_id: str) -> Waiting | None:
        """Takes a request out; its agent gets the virtual time back."""
        waiting = self._by_id.get(request_id)
        if waiting is not None:
            self._drop(waiting)
            self.correct(waiting.step.agent, -waiting.cost_s, waiting.step.weight)
        return waiting

    def first(self, model: str) -> Waiting | None:
        """Who is served next on this model: the oldest if it is due, else the least key."""
        oldest = self.oldest(model)
        if oldest is None or oldest.overtaken >= self._max_overtaken:
            return oldest
        heap, requests = self._heaps[model], self._by_model[model]
        while heap[0][1] not in requests:
            heappop(heap)
        return requests[heap[0][1]]

    def oldest(self, model: str) -> Waiting | None:
        return next(iter(self._by_model.get(model, {}).values()), None)

    def granted(self, waiting: Waiting) -> None:
        """Takes a request out because it is served, and moves the queue's virtual time."""
        self._drop(waiting)
        self._virtual = max(self._virtual, waiting.start_tag)
        if len(self._finish) > _IDLE_AGENTS_KEPT:
            self._finish = {a: f for a, f in self._finish.items() if f > self._virtual}

    def count_overtaken(self, granted: Waiting, model: str) -> None:
        """Notes that `granted` passed everyone older and no more patient who waits for `model`."""
        for seq, waiting in self._by_model.get(model, {}).items():
            if seq > granted.seq:
                break
            if granted.step.priority >= waiting.step.priority:
                waiting.overtaken += 1
                self._due += waiting.overtaken == self._max_overtaken

    def correct(self, agent: str, seconds: float, weight: float) -> None:
        """Moves an agent's virtual finish by what a step took more (or less) than predicted."""
        if agent in self._finish:
            self._finish[agent] += seconds / weight

    @property
    def has_due(self) -> bool:
        """Somebody was overtaken as often as anybody may be."""
        return self._due > 0

    def is_due(self, waiting: Waiting) -> bool:
        return waiting.overtaken >= self._max_overtaken

    def _drop(self, waiting: Waiting) -> None:
        del self._by_id[waiting.step.request_id]
        self._due -= self.is_due(waiting)
        requests = self._by_model[waiting.model]
        del requests[waiting.seq]
        heap = self._heaps[waiting.model]
        if not requests:
            heap.clear()
        elif len(heap) > 2 * len(requests) + 16:
            heap[:] = [entry for entry in heap if entry[1] in requests]
            heapify(heap)
