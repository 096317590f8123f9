"""The core's picture of the world: models, instances, leases, queue, ledger. Changed only by it.

The rules live elsewhere, one subject a file (`grants`, `room`, `pressure`, `outlook`), as functions
over this one value; `core` decides in which order they run. What they want done is appended to
`effects`, which `core.handle` hands out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from appliance.scheduler.breaker import Breaker
from appliance.scheduler.forecast import Forecast
from appliance.scheduler.foreign import ForeignHold
from appliance.scheduler.ledger import Ledger
from appliance.scheduler.policy import Policy
from appliance.scheduler.values import (
    AgentSpec,
    DeviceView,
    Effect,
    Fit,
    ModelSpec,
    ParkIdle,
    Placer,
    Record,
    ResidentState,
    StepRequested,
    StopInstance,
)
from appliance.scheduler.waiting import WaitingQueue
from appliance.types import Json

_LEARNING = 0.3
"""Weight of the newest measurement of load seconds, service seconds and tokens per second."""


@dataclass(slots=True, eq=False)
class Held:
    """A lease that was granted: one slot of one instance for one step."""

    lease_id: str
    step: StepRequested
    since_s: float
    predicted_s: float
    preempted: bool = False


@dataclass(slots=True, eq=False)
class Instance:
    """One loaded (or loading, or leaving) copy of a model.

    STARTING → READY → (DRAINING) → STOPPING → forgotten at `InstanceGone`. Only READY ones are
    granted; a DRAINING one finishes its leases. The bytes stay in the ledger under
    `instance_id` until it is gone.
    """

    instance_id: str
    spec: ModelSpec
    fit: Fit
    state: ResidentState
    started_s: float
    slots: int = 0
    ready_s: float = 0.0
    idle_since_s: float = 0.0
    leases: dict[str, Held] = field(default_factory=dict)
    doomed: str = ""
    """Why it goes as soon as it is idle; empty while it may stay."""
    has_died: bool = False
    is_guess: bool = False
    """Loaded without being asked for, into bytes that were free (`refill`)."""

    @property
    def model(self) -> str:
        return self.spec.name

    @property
    def slots_free(self) -> int:
        return self.slots - len(self.leases) if self.state is ResidentState.READY else 0

    @property
    def is_leaving(self) -> bool:
        return self.state in (ResidentState.DRAINING, ResidentState.STOPPING)


@dataclass(slots=True, eq=False)
class Claim:
    """A model that will be loaded once its victims' bytes are back, and what it needs then."""

    fit: Fit
    victims: set[str]
    since_s: float


@dataclass(slots=True, eq=False)
class ModelState:
    """A configured model: what was measured of it, whether it may start, what it waits for."""

    spec: ModelSpec
    breaker: Breaker
    load_s: float
    service_s: float
    tokens_per_s: float | None = None
    loads: int = 0
    size_bytes: int = 0
    """Of its latest placement."""
    checked_epoch: int = -1
    misfit: str = ""
    """Why it could not even be loaded alone, when last checked; empty if it could."""
    current: Instance | None = None
    """The instance that is starting or ready; leaving ones are in `Book.instances` alone."""
    claim: Claim | None = None
    wanted: bool = False
    """To be loaded without being asked for: pinned, preloaded, or an agent was bound to it."""
    in_use: bool = False
    """Asked for since it last left for lack of use: worth having back when memory is free."""

    def measured_load(self, seconds: float) -> None:
        first = self.loads == 0
        self.load_s = seconds if first else _blend(self.load_s, seconds)
        self.loads += 1

    def measured_service(self, seconds: float, output_tokens: int) -> None:
        self.service_s = _blend(self.service_s, seconds)
        if output_tokens > 0 and seconds > 0:
            rate = output_tokens / seconds
            known = self.tokens_per_s
            self.tokens_per_s = rate if known is None else _blend(known, rate)


@dataclass(slots=True, eq=False)
class Book:
    """Everything the rules read and change."""

    policy: Policy
    placer: Placer
    forecast: Forecast
    queue: WaitingQueue
    foreign: ForeignHold
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

    def fresh(self, prefix: str) -> str:
        self.next_id += 1
        return f"{prefix}#{self.next_id}"

    def record(self, now_s: float, kind: str, subject: str, **numbers: Json) -> None:
        self.effects.append(Record(now_s, kind, subject, numbers))

    def ready(self) -> Iterator[Instance]:
        for state in self.models.values():
            if state.current is not None and state.current.state is ResidentState.READY:
                yield state.current

    def may_load(self, model: str, now_s: float) -> bool:
        """The model is neither loaded nor loading, nor is room being made, and it may be tried."""
        state = self.models[model]
        served = state.current is not None or state.claim is not None
        return not served and state.breaker.retry_in_s(now_s) == 0

    def can_be_delayed(self, model: str, now_s: float) -> bool:
        """Grants to others may still put off the load of this model: it has no claim, or one whose
        victims still work. Where one step runs at a time, every grant delays everyone."""
        current, claim = self.models[model].current, self.models[model].claim
        if self.policy.wait_for_dry:
            return True
        if current is not None or claim is None:
            return self.may_load(model, now_s)
        return any(v in self.instances and self.instances[v].leases for v in claim.victims)

    def leave(self, instance: Instance, reason: str, now_s: float) -> None:
        """No more grants; stops now if idle, else when its last lease comes back."""
        state = self.models.get(instance.model)
        if state is not None and state.current is instance:
            state.current = None
        if instance.leases:
            instance.state, instance.doomed = ResidentState.DRAINING, reason
            self.record(now_s, "drain", instance.model, instance=instance.instance_id, why=reason)
        else:
            self.stop(instance, reason, now_s)

    def stop(self, instance: Instance, reason: str, now_s: float) -> None:
        assert not instance.leases, "an instance that holds a lease is never stopped"
        instance.state = ResidentState.STOPPING
        self.effects.append(ParkIdle(instance.instance_id))
        self.effects.append(StopInstance(instance.instance_id, reason))
        self.record(now_s, "stop", instance.model, instance=instance.instance_id, why=reason)


def _blend(known: float, new: float) -> float:
    return (1 - _LEARNING) * known + _LEARNING * new
