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

Counting each of those passed over at each pass would make a grant cost as much as there are who
wait. So a line notes the passes, by their place in arrival order, and a request's overtakers are
those noted behind it, looked up when it is its line's oldest or is granted: nobody else is asked.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import TypeAlias

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
    """As known when it became its line's oldest, kept from then on, or when it was granted."""


_Rank: TypeAlias = tuple[bool, float, str]
"""Where a model stands among those that are waited for: the due by age, then the others by key."""


class Line:
    """Those who wait for one model, at least one: in arrival order, and in a heap by key.

    Who waits longest, who is served next and how the model ranks by them are asked far more often
    than they change, so all three are kept.
    """

    __slots__ = ("_agents", "_passes", "first", "heap", "oldest", "rank", "requests", "weight")

    def __init__(self, waiting: Waiting) -> None:
        self.requests = {waiting.seq: waiting}
        self.heap = [(waiting.key, waiting.seq)]
        self.oldest = self.first = waiting
        self.rank: _Rank = (True, waiting.key, waiting.model)
        self._passes: dict[Priority, list[int]] = {}
        """The places in arrival order of those who were granted past somebody here, by priority."""
        self._agents = {waiting.step.agent: (1, waiting.step.weight)}
        self.weight = waiting.step.weight
        """Of its agents, each counted once."""

    def add(self, waiting: Waiting) -> None:
        self.requests[waiting.seq] = waiting
        heappush(self.heap, (waiting.key, waiting.seq))
        count, weight = self._agents.get(waiting.step.agent, (0, waiting.step.weight))
        self.weight += 0.0 if count else weight
        self._agents[waiting.step.agent] = (count + 1, weight)

    def drop(self, waiting: Waiting) -> None:
        """Takes out one of several."""
        heap, requests, agent = self.heap, self.requests, waiting.step.agent
        del requests[waiting.seq]
        count, weight = self._agents.pop(agent)
        if count > 1:
            self._agents[agent] = (count - 1, weight)
        else:
            self.weight -= weight
        if len(heap) > 2 * len(requests) + 16:
            heap[:] = [entry for entry in heap if entry[1] in requests]
            heapify(heap)
        while heap[0][1] not in requests:
            heappop(heap)

    def passed(self, granted: Waiting) -> None:
        """Somebody who is not this line's oldest was granted past it."""
        insort(self._passes.setdefault(granted.step.priority, []), granted.seq)
        self.oldest.overtaken += granted.step.priority >= self.oldest.step.priority

    def overtakers(self, waiting: Waiting) -> int:
        """How many who came later than this one, and are not more urgent, went first."""
        return sum(
            len(seqs) - bisect_right(seqs, waiting.seq)
            for priority, seqs in self._passes.items()
            if priority >= waiting.step.priority
        )

    def renew(self, max_overtaken: int) -> _Rank:
        """Finds out again who waits longest, who is next, and how the model ranks by that."""
        oldest = next(iter(self.requests.values()))
        if oldest is not self.oldest:
            self.oldest = oldest
            oldest.overtaken = self.overtakers(oldest)
            for seqs in self._passes.values():
                del seqs[: bisect_right(seqs, oldest.seq)]
        if oldest.overtaken >= max_overtaken:
            self.first = oldest
            return (False, oldest.seq, oldest.model)
        key, seq = self.heap[0]
        self.first = self.requests[seq]
        return (True, key, oldest.model)


class WaitingQueue:
    """All waiting requests, by model. Owned by the core.

    The models that are waited for are kept in the order in which they are to be tried; one event
    moves one or two of them.
    """

    def __init__(self, max_overtaken: int) -> None:
        self._max_overtaken = max_overtaken
        self._by_id: dict[str, Waiting] = {}
        self.lines: dict[str, Line] = {}
        """Who waits, by model: changed by the queue alone."""
        self._ranks: list[_Rank] = []
        self._interactive = 0
        self._finish: dict[str, float] = {}
        self._virtual = 0.0
        self._next_seq = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_id

    def __iter__(self) -> Iterator[Waiting]:
        """In arrival order within a model."""
        for line in self.lines.values():
            yield from line.requests.values()

    def models(self) -> list[str]:
        """The models that are waited for."""
        return list(self.lines)

    def by_urgency(self) -> Iterator[str]:
        """The models that are waited for: the due ones by age, then the others by key."""
        return (model for _, _, model in self._ranks)

    @property
    def has_interactive(self) -> bool:
        """A person waits."""
        return self._interactive > 0

    def count(self, model: str) -> int:
        line = self.lines.get(model)
        return len(line.requests) if line is not None else 0

    def model_of(self, request_id: str) -> str | None:
        waiting = self._by_id.get(request_id)
        return waiting.model if waiting else None

    def position(self, request_id: str) -> tuple[int, int]:
        """Place among those who wait for the same model (from 1; 0 if unknown), and their count."""
        waiting = self._by_id.get(request_id)
        if waiting is None:
            return 0, 0
        requests = self.lines[waiting.model].requests.values()
        place = sum(other.key <= waiting.key for other in requests)
        return place, len(requests)

    def of_model(self, model: str) -> Iterator[Waiting]:
        return iter(self.lines[model].requests.values() if model in self.lines else ())

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
        self._interactive += step.priority is Priority.INTERACTIVE
        line = self.lines.get(model)
        if line is None:
            line = self.lines[model] = Line(waiting)
            insort(self._ranks, line.rank)
        else:
            line.add(waiting)
            self._renew(line)
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
        line = self.lines.get(model)
        return line.first if line is not None else None

    def oldest(self, model: str) -> Waiting | None:
        line = self.lines.get(model)
        return line.oldest if line is not None else None

    def granted(self, waiting: Waiting) -> None:
        """Takes a request out because it is served, and moves the queue's virtual time."""
        self._drop(waiting)
        self._virtual = max(self._virtual, waiting.start_tag)
        if len(self._finish) > _IDLE_AGENTS_KEPT:
            self._finish = {a: f for a, f in self._finish.items() if f > self._virtual}

    def passed_by(self, granted: Waiting) -> list[Line]:
        """The lines in which somebody older than `granted` waits."""
        seq = granted.seq
        return [line for line in self.lines.values() if line.oldest.seq < seq]

    def count_overtaken(self, granted: Waiting, line: Line) -> None:
        """Notes that `granted` passed everyone older and no more patient who waits there."""
        was_due = self.is_due(line.oldest)
        line.passed(granted)
        if self.is_due(line.oldest) and not was_due:
            self._renew(line)

    def correct(self, agent: str, seconds: float, weight: float) -> None:
        """Moves an agent's virtual finish by what a step took more (or less) than predicted."""
        if agent in self._finish:
            self._finish[agent] += seconds / weight

    def due_lines(self) -> Iterator[Line]:
        """Those whose oldest was overtaken as often as anybody may be, oldest first."""
        for is_not_due, _, model in self._ranks:
            if is_not_due:
                break
            yield self.lines[model]

    def is_due(self, waiting: Waiting) -> bool:
        return waiting.overtaken >= self._max_overtaken

    def _renew(self, line: Line) -> None:
        rank = line.renew(self._max_overtaken)
        if rank != line.rank:
            del self._ranks[bisect_left(self._ranks, line.rank)]
            line.rank = rank
            insort(self._ranks, rank)

    def _drop(self, waiting: Waiting) -> None:
        del self._by_id[waiting.step.request_id]
        self._interactive -= waiting.step.priority is Priority.INTERACTIVE
        line = self.lines[waiting.model]
        if waiting is not line.oldest:
            waiting.overtaken = line.overtakers(waiting)
        if len(line.requests) == 1:
            del self.lines[waiting.model]
            del self._ranks[bisect_left(self._ranks, line.rank)]
        else:
            line.drop(waiting)
            self._renew(line)
