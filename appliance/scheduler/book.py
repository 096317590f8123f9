"""The core's picture of the world: models, instances, leases, queue, ledger. Changed only by it.

The rules live elsewhere, one subject a file (`grants`, `room`, `pressure`, `outlook`), as functions
over this one value; `core` decides in which order they run. What they want done is appended to
`effects`, which `core.handle` hands out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from appliance.scheduler.forecast import Forecast
from appliance.scheduler.foreign import ForeignHold
from appliance.scheduler.handover import Handovers
from appliance.scheduler.instances import Claim, Instance, ModelState
from appliance.scheduler.ledger import Ledger
from appliance.scheduler.policy import Policy
from appliance.scheduler.tally import Tally
from appliance.scheduler.values import (
    AgentSpec,
    DeviceView,
    Effect,
    Holdings,
    Placer,
    ReadAhead,
    Record,
    ResidentState,
    StopInstance,
)
from appliance.scheduler.waiting import Waiting, WaitingQueue
from appliance.types import Json


@dataclass(frozen=True, slots=True)
class Contention:
    """The weight of the agents who wait for a place, and how many models they wait for."""

    weight: float
    models: int

    def share(self, weight: float) -> float:
        """What is due to those who have the place and weigh so much; where they are not known yet,
        as much as to others."""
        if weight <= 0.0:
            return 1 / (1 + self.models)
        return weight / (weight + self.weight)


@dataclass(slots=True, eq=False)
class Sharing:
    """What was last asked about who is loaded beside whom: of which models, in which memory."""

    number: int = 0
    of: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """By name the fingerprint, and the slots that are needed."""
    epoch: int = -1
    until_s: float = 0.0
    """Until then, and in that epoch, those in use need no second look."""
    capacity: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Book:
    """Everything the rules read and change."""

    policy: Policy
    placer: Placer
    forecast: Forecast
    queue: WaitingQueue
    foreign: ForeignHold
    handovers: Handovers = field(default_factory=Handovers)
    tally: Tally = field(default_factory=Tally)
    sharing: Sharing = field(default_factory=Sharing)
    ledger: Ledger = field(default_factory=Ledger)
    models: dict[str, ModelState] = field(default_factory=dict)
    agents: dict[str, AgentSpec] = field(default_factory=dict)
    instances: dict[str, Instance] = field(default_factory=dict)
    leases: dict[str, Instance] = field(default_factory=dict)
    views: dict[str, DeviceView] = field(default_factory=dict)
    draining: bool = False
    effects: list[Effect] = field(default_factory=list)
    next_id: int = 0
    epoch: int = 0
    """Counts changes of capacity and configuration: what fits at all is asked once in each."""
    events: int = 0
    """Counts events."""
    returns: int = 0
    """Counts returns of memory: what did not fit may fit now."""
    doubted: bool = True
    """A model that is waited for may have become one that cannot come."""
    claiming: dict[str, ModelState] = field(default_factory=dict)
    """The models for which room is being made, by name, the oldest claim first."""
    starting: dict[str, Instance] = field(default_factory=dict)
    leaving: dict[str, Instance] = field(default_factory=dict)
    """Of the instances those that load, and those that are to go or go, by id."""
    making_way: set[str] = field(default_factory=set)
    """Of those that go the ones that make way for a preload: no guess until they are gone."""
    room_made_for: str = ""
    """The model that they made way for; empty once it loads, or something else does instead."""
    wanted: tuple[ModelState, ...] = ()
    """The models to be loaded without being asked for."""
    full_behind: tuple[int, Waiting | None, tuple[Instance, ...]] | None = None
    """The event, the barrier and the instances with which nothing was left to be granted."""
    _claimed: int = 0
    _seated: int = 0
    _holdings: tuple[tuple[int, int, int], Holdings] | None = None
    _open: tuple[int, dict[str, int]] = (-1, {})
    _ready: tuple[Instance, ...] | None = None
    _contention: Contention | None = None
    _next_uses: dict[str, float] = field(default_factory=dict)

    def begin(self) -> None:
        """An event comes in."""
        self.events += 1
        self.effects, self._contention = [], None
        self._next_uses.clear()

    def noted(self) -> None:
        """The event is in the book, and the rules begin: what was asked while it was written, to
        predict a wait, is out of date."""
        self._contention = None
        self._next_uses.clear()

    def fresh(self, prefix: str) -> str:
        self.next_id += 1
        return f"{prefix}#{self.next_id}"

    def record(self, now_s: float, kind: str, subject: str, **numbers: Json) -> None:
        self.effects.append(Record(now_s, kind, subject, numbers))

    # ── instances and claims: every change of state goes through here ───────────────────────────

    def ready(self) -> tuple[Instance, ...]:
        """What can be granted now, models in the order of the configuration."""
        if self._ready is None:
            current = (state.current for state in self.models.values())
            self._ready = tuple(i for i in current if i and i.state is ResidentState.READY)
        return self._ready

    def add(self, state: ModelState, instance: Instance) -> None:
        """A model's instance starts; a claim that waited for this is done with."""
        self.claim(state, None)
        self._seated += 1
        state.is_read_ahead = False
        state.current = self.instances[instance.instance_id] = instance
        self.starting[instance.instance_id] = instance

    def open(self, instance: Instance, slots: int, now_s: float) -> None:
        """It is loaded and may be granted."""
        instance.slots, instance.state = slots, ResidentState.READY
        instance.ready_s = instance.idle_since_s = now_s
        del self.starting[instance.instance_id]
        self._ready = None

    def reopen(self, state: ModelState, instance: Instance) -> None:
        """It was to leave when idle, and is needed after all."""
        instance.state, instance.doomed = ResidentState.READY, ""
        del self.leaving[instance.instance_id]
        state.current, self._ready = instance, None
        self._seated += 1

    def unseat(self, state: ModelState) -> None:
        """The model has no instance any more that is starting or ready."""
        state.current, self._ready, self.doubted = None, None, True
        self._seated += 1

    def leave(self, instance: Instance, reason: str, now_s: float) -> None:
        """No more grants; stops now if idle, else when its last lease comes back."""
        state = self.models.get(instance.model)
        if state is not None and state.current is instance:
            self.unseat(state)
        if instance.leases:
            instance.state, instance.doomed = ResidentState.DRAINING, reason
            self.leaving[instance.instance_id] = instance
            self.record(now_s, "drain", instance.model, instance=instance.instance_id, why=reason)
        else:
            self.stop(instance, reason, now_s)

    def stop(self, instance: Instance, reason: str, now_s: float) -> None:
        assert not instance.leases, "an instance that holds a lease is never stopped"
        self.starting.pop(instance.instance_id, None)
        self.leaving[instance.instance_id] = instance
        instance.state = ResidentState.STOPPING
        self.effects.append(StopInstance(instance.instance_id, reason))
        self.record(now_s, "stop", instance.model, instance=instance.instance_id, why=reason)

    def died(self, instance: Instance, reason: str) -> None:
        """The process ended, or never came up; its bytes are not back yet."""
        self.starting.pop(instance.instance_id, None)
        self.leaving[instance.instance_id] = instance
        instance.state, instance.doomed, instance.has_died = ResidentState.STOPPING, reason, True

    def gone(self, instance: Instance) -> None:
        """Nothing is left of it, and no claim waits for it any more."""
        del self.instances[instance.instance_id]
        for claim in self.claims():
            claim.victims.discard(instance.instance_id)
        self.starting.pop(instance.instance_id, None)
        self.leaving.pop(instance.instance_id, None)
        self.making_way.discard(instance.instance_id)
        self.ledger.release(instance.instance_id)
        self.returns += 1

    def claim(self, state: ModelState, claim: Claim | None) -> None:
        """Room is being made for the model, or no longer."""
        if claim is not None:
            self.claiming[state.spec.name] = state
        elif state.claim is None:
            return
        else:
            del self.claiming[state.spec.name]
            self.doubted = True
        state.claim = claim
        self._claimed += 1

    def read_ahead(self, state: ModelState, now_s: float) -> None:
        """Somebody waits for the model and there is no room yet; said once until it loads."""
        if state.spec.needs_memory and not state.is_read_ahead:
            state.is_read_ahead = True
            self.effects.append(ReadAhead(state.spec.name))
            self.record(now_s, "read_ahead", state.spec.name)

    def claims(self) -> Iterator[Claim]:
        """Whose bytes are spoken for, the oldest claim first."""
        return (state.claim for state in self.claiming.values() if state.claim is not None)

    def adopt(self, state: ModelState) -> None:
        """A model is new in the configuration."""
        self.models[state.spec.name] = state
        self.doubted = True

    def drop(self, model: str) -> None:
        """A model is no longer in the configuration; its instance has left before."""
        self.claim(self.models[model], None)
        del self.models[model]

    # ── questions ───────────────────────────────────────────────────────────────────────────────

    def may_load(self, state: ModelState, now_s: float) -> bool:
        """The model is neither loaded nor loading, nor is room being made, and it may be tried."""
        served = state.current is not None or state.claim is not None
        return not served and state.breaker.retry_at_s <= now_s

    @property
    def room(self) -> int:
        """Rises whenever anything changes what fits into free bytes."""
        return self.ledger.changes + self._claimed

    @property
    def moment(self) -> tuple[int, int, int]:
        """Differs whenever anything may have changed for those who seek a place: another event, and
        within it each grant, stop or claim."""
        return self.events, len(self.effects), self.room

    def open_free(self) -> dict[str, int]:
        """Free bytes per device less what outstanding claims count on. Not to be changed."""
        known, free = self._open
        if known != self.room:
            free = self.ledger.all_free()
            for claim in self.claims():
                for device, need in self._needs(claim).items():
                    free[device] = max(free.get(device, 0) - need, 0)
            self._open = (self.room, free)
        return free

    def _needs(self, claim: Claim) -> Mapping[str, int]:
        """What a claim counts on beside its victims' bytes."""
        ledger = self.ledger
        if claim.needs[0] != ledger.amends:
            needs = dict(claim.fit.bytes_by_device)
            for victim in claim.victims:
                for device, held in ledger.held_by(victim).items():
                    if device in needs:
                        needs[device] -= held
            needs = {device: need for device, need in needs.items() if need > 0}
            claim.needs = (ledger.amends, needs)
        return claim.needs[1]

    def freed(self, leaving: Iterable[Instance]) -> dict[str, int]:
        """Open bytes per device once these are gone."""
        free = dict(self.open_free())
        for instance in leaving:
            for device, held in self.ledger.held_by(instance.instance_id).items():
                free[device] = free.get(device, 0) + held
        return free

    def holdings(self) -> Holdings:
        """Budgets and what models hold of them."""
        known = (self.ledger.changes, self._seated, self.epoch)
        if self._holdings is None or self._holdings[0] != known:
            held = {
                name: self.ledger.held_by(state.current.instance_id)
                for name, state in self.models.items()
                if state.current is not None
            }
            self._holdings = known, Holdings(self.ledger.capacities(), held)
        return self._holdings[1]

    def next_use_s(self, model: str, now_s: float) -> float:
        """What the forecast says of a model in this event, whoever asks how often."""
        known = self._next_uses.get(model)
        if known is None:
            known = self._next_uses[model] = self.forecast.next_use_s(model, now_s)
        return known

    def contention(self) -> Contention:
        """Who waits for a model that has no place, when the rules begin."""
        if self._contention is None:
            models = self.models
            weights = [
                line.weight
                for name, line in self.queue.lines.items()
                if models[name].current is None
            ]
            self._contention = Contention(sum(weights), len(weights))
        return self._contention

    def can_be_delayed(self, model: str, now_s: float) -> bool:
        """Grants to others may still put off the load of this model: it has no claim, or one whose
        victims still work. Where one step runs at a time, every grant delays everyone."""
        state = self.models[model]
        if self.policy.wait_for_dry:
            return True
        claim = state.claim
        if state.current is not None or claim is None:
            return self.may_load(state, now_s)
        return any(self.instances[victim].leases for victim in claim.victims)
