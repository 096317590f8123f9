"""What the scheduler is told and what it answers: specifications, events in, effects out.

Everything is a frozen value. Times are seconds on one monotonic clock, sizes are bytes, an
`instance_id` is never used twice. The prompt's text never comes here: only its length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TypeAlias

from appliance.scheduler.policy import Policy
from appliance.types import Json, Priority

DEFAULT_WEIGHT = 1.0
"""A step with this weight takes its agent's."""

# ── specifications ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A configured model as the scheduler sees it.

    `fingerprint` covers everything whose change needs a reload; `demand` is what the placer
    reads and nobody else. `load_s` is a guess until a load was measured. A provider
    (`needs_memory` false) has slots but no bytes. `slots` bounds what a placement may offer.
    """

    name: str
    slots: int = 1
    needs_memory: bool = True
    pinned: bool = False
    preload: bool = False
    load_s: float = 10.0
    idle_unload_s: float | None = None
    fingerprint: str = ""
    demand: object = None
    is_elastic: bool = False
    """It can be loaded with less than it wishes for: fewer slots, a shorter window."""


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """An agent's share: its models, most preferred first, and its weight in the fair queue."""

    name: str
    models: tuple[str, ...] = ()
    weight: float = DEFAULT_WEIGHT


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device's memory as last observed: what may be used at all, and what others use of it.

    `capacity_bytes` is the total less the operator's reserve.
    """

    device: str
    capacity_bytes: int
    foreign_bytes: int = 0


# ── placement ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Fit:
    """Where a model goes: bytes per device, the slots it will offer, and the engine's own plan."""

    bytes_by_device: Mapping[str, int]
    slots: int
    placement: object = None
    on_cards: float = 1.0
    """Share of its layers that are not on the host."""
    is_less: bool = False
    """With less than it wishes for: fewer slots, a shorter window, a smaller cache."""

    @property
    def total_bytes(self) -> int:
        return sum(self.bytes_by_device.values())


@dataclass(frozen=True, slots=True)
class Misfit:
    """It does not go anywhere. `tell` finds the words for why and what would help, which takes
    longer than the answer: only for somebody who is going to read them."""

    tell: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a placer may want to know beside the free bytes: what there would be without us, by
    device, and what each model with an instance that loads or is ready has of it."""

    budgets: Mapping[str, int]
    bytes_by_model: Mapping[str, Mapping[str, int]]


class Placer(Protocol):
    """Chooses devices for one model among free bytes per device; pure and deterministic. Asked
    several times in a decision, mostly about the same bytes. No place with less than a share
    `least` of its layers on cards is one. The free bytes are not to be changed afterwards."""

    def place(
        self, spec: ModelSpec, free: Mapping[str, int], least: float = 0.0
    ) -> Fit | Misfit: ...

    def fits(self, spec: ModelSpec, free: Mapping[str, int], least: float = 0.0) -> bool:
        """Whether `place` would find a fit, which may be known without looking for the best one."""
        ...


# ── events ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class StepRequested:
    """An agent wants to run one step on the first of `models` that can serve it."""

    request_id: str
    agent: str
    models: tuple[str, ...]
    priority: Priority = Priority.NORMAL
    deadline_s: float | None = None
    weight: float = DEFAULT_WEIGHT
    session: str = ""
    prompt_tokens: int = 0
    max_tokens: int = 0
    preemptible: bool = False


@dataclass(frozen=True, slots=True)
class StepCancelled:
    request_id: str


@dataclass(frozen=True, slots=True)
class LeaseReleased:
    """A step ended; token counts and seconds are measured, zero where unknown."""

    lease_id: str
    output_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class InstanceReady:
    """An instance can generate. Bytes are what the devices show of it; None keeps the promise."""

    instance_id: str
    load_s: float
    slots: int
    bytes_by_device: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class InstanceFailed:
    """An instance did not start, died or hung. `broken` means trying again cannot help.

    Its bytes stay reserved until `InstanceGone`.
    """

    instance_id: str
    reason: str
    broken: bool = False
    crashed: bool = True


@dataclass(frozen=True, slots=True)
class InstanceGone:
    """The process is gone and the devices show its bytes free again."""

    instance_id: str


@dataclass(frozen=True, slots=True)
class InventoryChanged:
    devices: tuple[DeviceView, ...]


@dataclass(frozen=True, slots=True)
class ConfigChanged:
    """The whole wanted state; what it leaves out is drained and unloaded. No policy: as before."""

    models: tuple[ModelSpec, ...]
    agents: tuple[AgentSpec, ...] = ()
    policy: Policy | None = None


@dataclass(frozen=True, slots=True)
class Shared:
    """The answer to `ShareOut` of that number: models that are to wish for less, as that."""

    number: int
    parts: Mapping[str, ModelSpec]


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """The daemon stops: refuse what waits, grant nothing more, unload what becomes idle."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


Event: TypeAlias = (
    StepRequested
    | StepCancelled
    | LeaseReleased
    | InstanceReady
    | InstanceFailed
    | InstanceGone
    | InventoryChanged
    | ConfigChanged
    | Shared
    | DrainRequested
    | Tick
)


# ── effects ─────────────────────────────────────────────────────────────────────────────────────


class RefusalCode(StrEnum):
    OVERLOADED = "overloaded"
    NO_CAPACITY = "no_capacity"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    ENGINE_FAILED = "engine_failed"
    MODEL_BROKEN = "model_broken"
    UNKNOWN_MODEL = "not_found"


@dataclass(frozen=True, slots=True)
class StartInstance:
    instance_id: str
    spec: ModelSpec
    fit: Fit


@dataclass(frozen=True, slots=True)
class ReadAhead:
    """The model is to be loaded as soon as there is room: its files may be read meanwhile."""

    model: str


@dataclass(frozen=True, slots=True)
class Use:
    """How a model is used of late: the seconds of loading, were each use a load, and the most steps
    that wanted it at once."""

    worth_s: float
    slots: int


@dataclass(frozen=True, slots=True)
class ShareOut:
    """Find the parts of these models, which are used beside each other, in this memory; answered
    by `Shared`. Takes long for a decision: until then the parts known before hold."""

    number: int
    models: Mapping[ModelSpec, Use]
    capacity: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class StopInstance:
    """End it in good order: an engine that keeps conversations saves them before it goes, within
    its own bound of time."""

    instance_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Grant:
    request_id: str
    lease_id: str
    instance_id: str
    model: str
    queue_s: float
    load_s: float


@dataclass(frozen=True, slots=True)
class Refuse:
    request_id: str
    code: RefusalCode
    reason: str
    retry_after_s: float | None = None
    predicted_wait_s: float | None = None


@dataclass(frozen=True, slots=True)
class Preempt:
    """Take a lease back: its holder stops generating, releases, and asks again."""

    lease_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Record:
    """A decision with the numbers that decided it; the words are stable, for `explain`."""

    at_s: float
    kind: str
    subject: str
    numbers: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send a `Tick` at this time; replaces an earlier wish."""

    time_s: float


Effect: TypeAlias = (
    StartInstance | ReadAhead | ShareOut | StopInstance | Grant | Refuse | Preempt | Record | WakeAt
)


# ── what others may look at ─────────────────────────────────────────────────────────────────────


class ResidentState(StrEnum):
    ABSENT = "absent"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class ModelCapacity:
    """One model now. `predicted_wait_s` is what a normal request arriving now would wait."""

    model: str
    state: ResidentState
    slots: int
    slots_free: int
    waiting: int
    predicted_wait_s: float
    load_s: float
    tokens_per_s: float | None
    vram_bytes: int
    bytes_by_device: Mapping[str, int] = field(default_factory=dict)
    instance_id: str | None = None
    reason: str = ""

    @property
    def resident(self) -> bool:
        return self.state is ResidentState.READY


@dataclass(frozen=True, slots=True)
class DeviceCapacity:
    device: str
    capacity_bytes: int
    reserved_bytes: int
    foreign_bytes: int


@dataclass(frozen=True, slots=True)
class Capacity:
    """A picture of the scheduler: it may inform a decision elsewhere, never gate a change."""

    at_s: float
    models: Mapping[str, ModelCapacity]
    devices: tuple[DeviceCapacity, ...]
    waiting: int
    leases: int
