"""A trace through the product's own core, counting loads: swap policy and nothing else.

All models have one size and `slots` of them are resident at once. Requests are admitted in arrival
order and served in the order of the core's grants. With a window of one the core sees a request
only after the one before was granted and ended, so it knows nothing of the future and every grant
is in arrival order: this is the paging problem, and Belady's rule is its optimum. With a window of
W the next W requests wait at once, as under a backlog, and the core may collate them within its
bound.

The core's clock shows arrival times, so rhythms are real; loading and ending are instantaneous to
it. Waiting is computed beside it, on a line that a load stops: a request starts when it has
arrived, the one granted before it has started, and its model is loaded; a victim's last step ends
first.
"""

from __future__ import annotations

import csv
import math
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.errors import BadRequest
from appliance.scheduler.core import Core
from appliance.scheduler.placing import BestFit
from appliance.scheduler.policy import Policy
from appliance.scheduler.values import (
    ConfigChanged,
    DeviceView,
    Effect,
    Event,
    Grant,
    InstanceGone,
    InstanceReady,
    InventoryChanged,
    LeaseReleased,
    ModelSpec,
    StartInstance,
    StepRequested,
    StopInstance,
)

_MODEL_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace: seconds since its start, who, what, and how long it takes."""

    time_s: float
    agent: str
    model: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay counted. `waits_s` and `overtaken` by request in arrival order; decision times
    are wall seconds per event."""

    loads: int
    overtaken: list[int]
    waits_s: list[float]
    decisions_s: list[float]
    effects: list[Effect]


def read_trace(path: Path) -> list[TraceRow]:
    """Rows of a CSV with the columns time_s, agent, model, duration_s, sorted by time, which is
    counted from the first one if that is below zero. Raises `BadRequest` naming the line that is
    none."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = {"time_s", "agent", "model", "duration_s"} - set(reader.fieldnames or ())
            if missing:
                raise BadRequest(f"{path} lacks the column {', '.join(sorted(missing))}")
            rows = [_row(fields, f"{path} line {reader.line_num}") for fields in reader]
    except OSError as error:
        raise BadRequest(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadRequest(f"{path} is not a CSV in UTF-8: {error}") from None
    if not rows:
        raise BadRequest(f"{path} has no requests")
    rows.sort(key=lambda row: row.time_s)
    before_s = min(rows[0].time_s, 0.0)
    return [replace(row, time_s=row.time_s - before_s) for row in rows] if before_s else rows


def _row(fields: Mapping[str, str | None], where: str) -> TraceRow:
    if not fields["model"]:
        raise BadRequest(f"{where} names no model")
    time_s, duration_s = (_seconds(fields, column, where) for column in ("time_s", "duration_s"))
    return TraceRow(time_s, fields["agent"] or "", fields["model"], duration_s)


def _seconds(fields: Mapping[str, str | None], column: str, where: str) -> float:
    text = fields[column]
    try:
        seconds = float(text or "")
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds) or (column == "duration_s" and seconds < 0):
        raise BadRequest(f"{where}: {column} is {text!r}, not seconds")
    return seconds


def replay(
    trace: Sequence[TraceRow],
    slots: int,
    window: int = 1,
    load_s: float = 10.0,
    keep_effects: bool = False,
) -> Replayed:
    """Replays a trace with `slots` resident models and a reordering window."""
    return _Replay(trace, slots, window, load_s, keep_effects).run()


def optimum_loads(models: Sequence[str], slots: int) -> int:
    """Belady: evict what is used furthest ahead. Exact for equal sizes in arrival order."""
    upcoming: dict[str, int] = {}
    next_use = [0] * len(models)
    for index in range(len(models) - 1, -1, -1):
        next_use[index] = upcoming.get(models[index], len(models) + index)
        upcoming[models[index]] = index
    resident: dict[str, int] = {}
    loads = 0
    for index, model in enumerate(models):
        if model not in resident:
            loads += 1
            if len(resident) >= slots:
                del resident[max(resident, key=resident.__getitem__)]
        resident[model] = next_use[index]
    return loads


def lru_loads(models: Iterable[str], slots: int) -> int:
    """Loads of the rule "evict what was used longest ago"."""
    resident: dict[str, None] = {}
    loads = 0
    for model in models:
        if model in resident:
            del resident[model]
        else:
            loads += 1
            if len(resident) >= slots:
                del resident[next(iter(resident))]
        resident[model] = None
    return loads


def lfu_loads(models: Iterable[str], slots: int) -> int:
    """Loads of least-frequently-used with dynamic ageing (LFU-DA): the key is the count plus the
    last victim's key at the time of use, so that old fame fades."""
    counts: dict[str, int] = {}
    keys: dict[str, int] = {}
    age = loads = 0
    for model in models:
        if model not in keys:
            loads += 1
            if len(keys) >= slots:
                victim = min(keys, key=lambda name: (keys[name], name))
                age = keys.pop(victim)
                del counts[victim]
        counts[model] = counts.get(model, 0) + 1
        keys[model] = counts[model] + age
    return loads


class _Replay:
    """The loop: admit, let the core decide, end what was granted."""

    def __init__(
        self,
        trace: Sequence[TraceRow],
        slots: int,
        window: int,
        load_s: float,
        keep_effects: bool,
    ) -> None:
        self._trace, self._window, self._load_s = trace, window, load_s
        self._core = Core(
            BestFit(),
            Policy(hold_s=0.0, wait_for_dry=window > 1, max_waiting=window + 1, preloads=False),
        )
        self._keep_effects = keep_effects
        self._admitted = 0
        self._now_s = trace[0].time_s if trace else 0.0
        self._line_s = self._now_s
        self._waiting: dict[int, None] = {}
        self._granted: deque[str] = deque()
        self._ends_s: dict[str, float] = {}
        self._todo: deque[Event] = deque()
        self._result = Replayed(0, [0] * len(trace), [0.0] * len(trace), [], [])
        self._loads = 0
        names = sorted({row.model for row in trace})
        specs = [ModelSpec(n, window, demand=_MODEL_BYTES, load_s=load_s) for n in names]
        self._handle(InventoryChanged((DeviceView("gpu", slots * _MODEL_BYTES),)))
        self._handle(ConfigChanged(tuple(specs)))
        self._result.decisions_s.clear()

    def run(self) -> Replayed:
        while self._admitted < len(self._trace) or self._waiting or self._granted:
            while self._may_admit():
                self._admit()
            self._settle()
            assert self._granted, "everybody is served in the end"
            self._todo.append(LeaseReleased(self._granted.popleft()))
            self._settle()
        done = self._result
        return Replayed(self._loads, done.overtaken, done.waits_s, done.decisions_s, done.effects)

    def _may_admit(self) -> bool:
        """A window of one waits for the end of the step before: no look ahead at all."""
        if self._admitted == len(self._trace) or (self._window == 1 and self._granted):
            return False
        return len(self._waiting) < self._window

    def _admit(self) -> None:
        index = self._admitted
        row = self._trace[index]
        self._admitted += 1
        self._now_s = max(self._now_s, row.time_s)
        self._waiting[index] = None
        self._todo.append(StepRequested(str(index), row.agent, (row.model,)))
        self._settle()

    def _settle(self) -> None:
        while self._todo:
            for effect in self._handle(self._todo.popleft()):
                self._perform(effect)

    def _handle(self, event: Event) -> list[Effect]:
        began = time.thread_time()
        effects = self._core.handle(event, self._now_s)
        self._result.decisions_s.append(time.thread_time() - began)
        while self._core.tidy():
            pass  # as the dispatcher does, when the effects are out
        if self._keep_effects:
            self._result.effects.extend(effects)
        return effects

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Grant():
                self._grant(effect)
            case StartInstance():
                self._loads += 1
                oldest = next(iter(self._waiting))
                self._line_s = max(self._line_s, self._trace[oldest].time_s) + self._load_s
                self._todo.append(InstanceReady(effect.instance_id, self._load_s, effect.fit.slots))
            case StopInstance():
                ends_s = self._ends_s.pop(effect.instance_id, 0.0)
                self._line_s = max(self._line_s, ends_s)
                self._todo.append(InstanceGone(effect.instance_id))
            case _:
                pass

    def _grant(self, grant: Grant) -> None:
        index = int(grant.request_id)
        row = self._trace[index]
        del self._waiting[index]
        for older in self._waiting:
            if older > index:
                break
            self._result.overtaken[older] += 1
        self._line_s = max(self._line_s, row.time_s)
        self._result.waits_s[index] = self._line_s - row.time_s
        ends_s = self._line_s + row.duration_s
        self._ends_s[grant.instance_id] = max(self._ends_s.get(grant.instance_id, 0.0), ends_s)
        self._granted.append(grant.lease_id)
