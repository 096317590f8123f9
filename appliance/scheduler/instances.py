"""What the core keeps of each model and of each loaded copy of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.scheduler.breaker import Breaker
from appliance.scheduler.values import Fit, Misfit, ModelSpec, ResidentState, StepRequested

_USE_FADES_S = 600.0
_LEAST_SEEN_S = 30.0
_FORGOTTEN = 0.1
"""Uses of which so little is left that one begins to count anew."""
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
    ahead_rate: float = 0.0
    ahead_until_s: float = 0.0
    """Uses per second that a hand-over makes likely until then, for which it was loaded."""
    is_less: bool = False
    """Loaded with less than its configuration wishes for."""
    looked_room: int = -1
    """`Book.room` when it was last looked whether it could have more (`best.has_more`)."""
    grants: int = 0
    clients: dict[str, tuple[float, float]] = field(default_factory=dict)
    """The agents it serves, by their latest grant: when, and the agent's weight."""
    clients_weight: float = 0.0
    model: str = field(init=False)

    def __post_init__(self) -> None:
        self.model = self.spec.name

    def hold(self, held: Held) -> None:
        """A slot is granted."""
        self.leases[held.lease_id] = held
        self.grants += 1
        agent, weight = held.step.agent, held.step.weight
        self.clients_weight += weight - self.clients.pop(agent, (0.0, 0.0))[1]
        self.clients[agent] = (held.since_s, weight)

    def weight_since(self, since_s: float) -> float:
        """The weight of the agents that were granted a slot since then; the others, who seem to
        have gone, are forgotten."""
        while self.clients:
            agent, (at_s, weight) = next(iter(self.clients.items()))
            if at_s >= since_s:
                break
            self.clients_weight -= weight
            del self.clients[agent]
        if not self.clients:
            self.clients_weight = 0.0
        return self.clients_weight

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
    returns: int
    """`Book.returns` when it was made."""
    needs: tuple[int, Mapping[str, int]] = (-1, {})
    """What it needs beside its victims' bytes, and `Ledger.amends` at that time."""


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
    misfit: Misfit | None = None
    """Why it could not even be loaded alone, when last examined; None if it could."""
    best_on_cards: float = 1.0
    """Share of its layers on cards that it would have then."""
    misfit_room: int = -1
    """`Book.room` when it did not fit into free bytes."""
    refused_at: tuple[int, int, int] | None = None
    """`Book.moment` when no place could be had for it."""
    current: Instance | None = None
    """The instance that is starting or ready; leaving ones are in `Book.instances` alone."""
    claim: Claim | None = None
    is_read_ahead: bool = False
    """Its files are being read while it waits for room."""
    wanted: bool = False
    """To be loaded without being asked for: pinned, preloaded, or an agent was bound to it."""
    in_use: bool = False
    """Asked for since it last left for lack of use: worth having back when memory is free."""

    part: ModelSpec | None = None
    """What it wishes for beside the others in use, where that is less (`sharing`)."""
    part_told: tuple[int, bool] | None = None
    """Slots, and whether that is less than it wishes for, as last recorded."""
    asked_s: float | None = None
    """When it was last asked for."""
    used_since_s: float = 0.0
    uses: float = 0.0
    """`uses_at` that time."""
    fell_idle_s: float | None = None
    """When its last lease came back; None once it is asked for again."""
    keeps_coming: float = 0.5
    """How often it was asked for again within `Policy.hold_s`, loaded or not."""

    def uses_at(self, now_s: float) -> float:
        """How often it was asked for lately; a use counts half after each `_USE_FADES_S`."""
        if self.asked_s is None:
            return 0.0
        return float(self.uses * 0.5 ** ((now_s - self.asked_s) / _USE_FADES_S))

    def needs_slots(self, now_s: float) -> int:
        """For the steps that were asked for lately, had each run at once: the mean number of them
        that run, and as much more as that varies (its square root)."""
        lasts_s = _USE_FADES_S / math.log(2)
        seen_s = lasts_s * -math.expm1(-max(now_s - self.used_since_s, _LEAST_SEEN_S) / lasts_s)
        running = self.uses_at(now_s) / seen_s * self.service_s
        return max(math.ceil(running + math.sqrt(running)), 1)

    @property
    def wish(self) -> ModelSpec:
        """As what it is to be loaded, if there is room for all of that."""
        return self.part or self.spec

    def asked(self, now_s: float, hold_s: float) -> None:
        uses = self.uses_at(now_s)
        if uses < _FORGOTTEN:
            self.used_since_s = now_s
        self.uses, self.asked_s = 1.0 + uses, now_s
        if self.fell_idle_s is not None:
            came_back = now_s - self.fell_idle_s <= hold_s
            self.keeps_coming = _blend(self.keeps_coming, float(came_back))
            self.fell_idle_s = None

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


def _blend(known: float, new: float) -> float:
    return (1 - _LEARNING) * known + _LEARNING * new
