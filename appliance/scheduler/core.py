"""The heart: `handle(event, now) -> list[Effect]`. No clock, no I/O, no surprise.

It is total (any event in any state has an answer), silent (it logs nothing and raises only for our
own bugs) and deterministic (the same events at the same times give the same effects, byte for
byte). Each event first changes the book, then the rules run in a fixed order until nothing moves:
what expired is refused, free slots are granted, memory is given back where it is short, room is
made for what waits, background steps are cut where an urgent one stands behind them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from heapq import heappop, heappush
from typing import assert_never

from appliance.scheduler import (
    alarm,
    best,
    configuring,
    grants,
    outlook,
    pressure,
    room,
    sharing,
)
from appliance.scheduler.book import Book
from appliance.scheduler.forecast import Forecast
from appliance.scheduler.foreign import ForeignHold
from appliance.scheduler.instances import ModelState
from appliance.scheduler.ledger import settled
from appliance.scheduler.policy import Policy
from appliance.scheduler.servable import (
    is_hopeless,
    obstacle_of,
    refuse,
    refuse_unservable,
    retry_s,
)
from appliance.scheduler.values import (
    DEFAULT_WEIGHT,
    Capacity,
    ConfigChanged,
    DeviceCapacity,
    DrainRequested,
    Effect,
    Event,
    Holdings,
    InstanceFailed,
    InstanceGone,
    InstanceReady,
    InventoryChanged,
    LeaseReleased,
    Placer,
    RefusalCode,
    ResidentState,
    Shared,
    StepCancelled,
    StepRequested,
    Tick,
    WakeAt,
)
from appliance.scheduler.waiting import WaitingQueue

_ROUNDS = 64
"""Rounds of grants and room-making at one event; each makes progress, so this is never reached with
fewer models than this that can change state at once."""

_LONG_IDLE_S = 60.0
"""Idle for so long, a model may be loaded anew to have more slots."""


class Core:
    """All scheduling decisions. One owner; not safe for concurrent use."""

    def __init__(self, placer: Placer, policy: Policy | None = None) -> None:
        policy = policy or Policy()
        self._book = Book(
            policy,
            placer,
            Forecast(),
            WaitingQueue(policy.max_overtaken),
            ForeignHold(policy.foreign_calm_s),
        )
        self._deadlines: list[tuple[float, str]] = []
        self._woken_s = math.inf
        self._checked_epoch = -1

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        """Takes one event in and says what is to be done, in this order."""
        book = self._book
        book.begin()
        match event:
            case StepRequested():
                self._requested(event, now_s)
            case StepCancelled():
                self._cancelled(event, now_s)
            case LeaseReleased():
                self._released(event, now_s)
            case InstanceReady():
                self._ready(event, now_s)
            case InstanceFailed():
                self._failed(event, now_s)
            case InstanceGone():
                self._gone(event, now_s)
            case InventoryChanged():
                pressure.observe(book, event.devices, now_s)
            case ConfigChanged():
                configuring.configured(book, event, now_s)
            case Shared():
                sharing.shared(book, event, now_s)
            case DrainRequested():
                configuring.drain(book, now_s)
            case Tick():
                pass
            case _:
                assert_never(event)
        self._settle(now_s)
        return book.effects

    def tidy(self) -> bool:
        """Does a little of what no decision waits for; True if there is more. For when there is
        time between events: whether and when it is called changes no decision."""
        return self._book.forecast.learn_next()

    # ── what others may look at ─────────────────────────────────────────────────────────────────

    def capacity(self, now_s: float) -> Capacity:
        return outlook.capacity(self._book, now_s)

    def devices(self, now_s: float) -> tuple[DeviceCapacity, ...]:
        """Of that picture the cards alone, for who asks at every event."""
        return outlook.devices(self._book, now_s)

    def holdings(self) -> Holdings:
        """For the placer, which is asked in the middle of a decision."""
        return self._book.holdings()

    def position(self, request_id: str) -> tuple[int, int]:
        """Place of a waiting request among those for its model, and how many they are."""
        return self._book.queue.position(request_id)

    def is_loading_for(self, request_id: str) -> bool:
        """The request waits for a load rather than for a slot."""
        model = self._book.queue.model_of(request_id)
        state = self._book.models.get(model) if model else None
        if state is None:
            return False
        return state.current is None or state.current.state is ResidentState.STARTING

    # ── events ──────────────────────────────────────────────────────────────────────────────────

    def _requested(self, step: StepRequested, now_s: float) -> None:
        book = self._book
        agent = book.agents.get(step.agent)
        if agent is not None and step.weight == DEFAULT_WEIGHT:
            step = replace(step, weight=agent.weight)
        known = [model for model in step.models if model in book.models]
        if not known:
            names = ", ".join(step.models)
            refuse(book, step.request_id, RefusalCode.UNKNOWN_MODEL, f"no model {names}", now_s)
            return
        if book.draining:
            refuse(book, step.request_id, RefusalCode.OVERLOADED, "stopping", now_s, 5.0)
            return
        obstacles = [obstacle_of(book, model, now_s) for model in known]
        is_full = len(book.queue) >= book.policy.max_waiting
        if len(known) > 1 or step.deadline_s is not None or is_full:
            waits_s = outlook.waits_s(book, known, now_s)
        else:
            waits_s = [0.0]  # nobody is going to ask
        first = min(range(len(known)), key=lambda n: (obstacles[n] is not None, waits_s[n]))
        model, obstacle, wait_s = known[first], obstacles[first], waits_s[first]
        book.models[model].in_use = True
        book.models[model].asked(now_s, book.policy.hold_s)
        self._observe(step.agent, book.models[model], now_s)
        book.handovers.asked(step.agent, model, now_s)
        is_absent = book.models[model].current is None
        book.tally.asked(model, book.models[model].load_s, now_s, is_absent=is_absent)
        sharing.asked(book, book.models[model], now_s)
        if obstacle is not None:
            refuse(book, step.request_id, *obstacle, now_s, retry_s(book, model, now_s))
            return
        if is_full:
            reason = f"{len(book.queue)} requests wait, the limit"
            refuse(book, step.request_id, RefusalCode.OVERLOADED, reason, now_s, wait_s, wait_s)
            return
        if is_hopeless(book, step, model, wait_s, now_s):
            reason = f"{model} is predicted to be free in {wait_s:.1f} s, after the deadline"
            refuse(book, step.request_id, RefusalCode.OVERLOADED, reason, now_s, wait_s, wait_s)
            return
        book.queue.add(step, model, book.models[model].service_s, now_s)
        if step.deadline_s is not None:
            heappush(self._deadlines, (step.deadline_s, step.request_id))

    def _observe(self, agent: str, state: ModelState, now_s: float) -> None:
        if state.spec.needs_memory and state.size_bytes > 0:
            ledger = self._book.ledger
            budget = sum(ledger.capacity(account) for account in ledger.accounts())
            self._book.forecast.observe(
                agent, state.spec.name, now_s, state.size_bytes, state.load_s, budget
            )

    def _cancelled(self, event: StepCancelled, now_s: float) -> None:
        waiting = self._book.queue.cancel(event.request_id)
        if waiting is not None:
            waited_s = round(now_s - waiting.since_s, 6)
            self._book.record(now_s, "cancel", event.request_id, waited_s=waited_s)

    def _released(self, event: LeaseReleased, now_s: float) -> None:
        book = self._book
        instance = book.leases.pop(event.lease_id, None)
        if instance is None:
            return
        held = instance.leases.pop(event.lease_id)
        book.handovers.ended(held.step.agent, event.seconds, now_s)
        state = book.models.get(instance.model)
        if state is not None and event.seconds > 0:
            state.measured_service(event.seconds, event.output_tokens)
            extra_s = event.seconds - held.predicted_s
            book.queue.correct(held.step.agent, extra_s, held.step.weight)
        if not instance.leases:
            instance.idle_since_s = now_s
            if state is not None:
                state.fell_idle_s = now_s
            if instance.state is ResidentState.DRAINING:
                book.stop(instance, instance.doomed, now_s)

    def _ready(self, event: InstanceReady, now_s: float) -> None:
        book = self._book
        instance = book.instances.get(event.instance_id)
        if instance is None or instance.state is not ResidentState.STARTING:
            return
        book.open(instance, event.slots, now_s)
        if event.bytes_by_device is not None:
            promised = book.ledger.held_by(event.instance_id)
            charged = settled(promised, event.bytes_by_device, book.open_free())
            book.ledger.settle(event.instance_id, charged)
        state = book.models.get(instance.model)
        book.record(
            now_s,
            "ready",
            instance.model,
            instance=instance.instance_id,
            load_s=round(event.load_s, 6),
            slots=event.slots,
            bytes=dict(book.ledger.held_by(event.instance_id)),
        )
        if state is not None and instance.spec == state.spec:
            state.measured_load(event.load_s)
            state.breaker.loaded()

    def _failed(self, event: InstanceFailed, now_s: float) -> None:
        book = self._book
        instance = book.instances.get(event.instance_id)
        if instance is None or instance.state is ResidentState.STOPPING:
            return
        for lease_id, held in instance.leases.items():
            del book.leases[lease_id]
            book.handovers.broke_off(held.step.agent)
        instance.leases.clear()
        was_loading = instance.state is ResidentState.STARTING
        book.died(instance, event.reason)
        book.record(
            now_s,
            "load_failed" if was_loading else "crash",
            instance.model,
            instance=instance.instance_id,
            why=event.reason,
        )
        state = book.models.get(instance.model)
        if state is None or state.current is not instance:
            return
        book.unseat(state)
        state.in_use &= not (was_loading and instance.is_guess)
        if event.broken:
            state.breaker.broke(event.reason)
        elif event.crashed:
            state.breaker.crashed(event.reason, now_s)
        else:
            state.breaker.declined(event.reason, now_s)
        if state.breaker.is_open(now_s):
            crashes = len(state.breaker.crashes_s)
            book.record(now_s, "breaker_open", instance.model, why=event.reason, crashes=crashes)

    def _gone(self, event: InstanceGone, now_s: float) -> None:
        instance = self._book.instances.get(event.instance_id)
        if instance is None:
            return
        assert not instance.leases, "a process that is gone serves nobody"
        if instance.has_died:
            for device, held in self._book.ledger.held_by(event.instance_id).items():
                self._book.foreign.returned(device, held, now_s)
        self._book.gone(instance)
        self._book.record(now_s, "gone", instance.model, instance=instance.instance_id)

    # ── rules ───────────────────────────────────────────────────────────────────────────────────

    def _settle(self, now_s: float) -> None:
        book = self._book
        book.noted()
        pressure.refresh(book, now_s)
        self._expire(now_s)
        if book.doubted or book.epoch != self._checked_epoch:
            book.doubted, self._checked_epoch = False, book.epoch
            refuse_unservable(book, now_s)
        moved = grants.grant_all(book, now_s)
        moved |= pressure.relieve(book, now_s)
        for _ in range(_ROUNDS):
            made = room.make_room(book, now_s)
            if not (made or moved):
                break
            moved = grants.grant_all(book, now_s)
            if not (made or moved):
                break
        grants.preempt_for_urgent(book, now_s)
        self._unload_unused(now_s)
        soonest_s = alarm.next_tick_s(
            self._book, self._deadlines[0][0] if self._deadlines else math.inf, now_s
        )
        if soonest_s not in (self._woken_s, math.inf):
            self._book.effects.append(WakeAt(soonest_s))
        self._woken_s = soonest_s

    def _expire(self, now_s: float) -> None:
        book = self._book
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, request_id = heappop(self._deadlines)
            waiting = book.queue.cancel(request_id)
            if waiting is not None:
                waited_s = now_s - waiting.since_s
                reason = f"waited {waited_s:.1f} s for {waiting.model}, until the deadline"
                refuse(book, request_id, RefusalCode.DEADLINE_EXCEEDED, reason, now_s)

    def _unload_unused(self, now_s: float) -> None:
        """What nobody asks for leaves where it was told to, and what could be loaded better."""
        for instance in self._book.ready():
            if instance.leases:
                continue
            state = self._book.models[instance.model]
            idle_s, limit_s = now_s - instance.idle_since_s, instance.spec.idle_unload_s
            if best.is_much_worse(self._book, state, instance.fit):
                self._book.leave(instance, "it can be on a card again", now_s)
            elif limit_s is not None and idle_s >= limit_s and not instance.spec.pinned:
                state.in_use = False
                self._book.leave(instance, f"idle for {limit_s:g} s", now_s)
            elif instance.is_less and idle_s >= _LONG_IDLE_S:
                sharing.consider(self._book, instance.model, now_s)
                if best.has_more(self._book, state, instance):
                    self._book.leave(instance, "it can have all that it wishes for again", now_s)

    # ── small questions ─────────────────────────────────────────────────────────────────────────
