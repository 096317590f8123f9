"""The places a step could run, as the router wants them described: config, capacity, health.

Also the health of providers, which one process must count for all turns: a breaker per model and
a retry budget per provider. Frozen values of `router`; this object only holds the current ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from appliance.clock import Clock
from appliance.config.models import (
    ClaudeModel,
    ModelConfig,
    RemoteModel,
    ScriptedModel,
    is_cloud,
)
from appliance.config.schema import Config
from appliance.router import breaker as breakers
from appliance.router.breaker import Breaker
from appliance.router.retry import TRANSIENT_TOKENS, Failure, RetryBudget
from appliance.router.types import BreakerState, Place, Prices, TargetFacts
from appliance.scheduler.values import Capacity, ModelCapacity, ResidentState
from appliance.types import Label

DEFAULT_LOCAL_TOKENS_PER_S = 20.0
DEFAULT_CLOUD_TOKENS_PER_S = 60.0
CLOUD_FIRST_TOKEN_S = 1.0
"""Guesses until something was measured; each is replaced by the first real figure."""


SPENT = -1
"""Less than anything costs: a local model whose cap of slot time is reached."""

THIS_MACHINE = "this machine"
"""The provider of everything that runs here."""


class Door(Protocol):
    """What egress says of a model that leaves the machine."""

    def obstacle(self, model: str) -> str:
        """Why it cannot be reached (air gap, no key), in words; empty when it can."""
        ...

    def rate_limit_tokens_left(self, model: str) -> int | None: ...


class Purse(Protocol):
    """What budgets leave for an agent's step: micro-dollars, or None where nothing limits."""

    def left_micro_usd(self, agent: str, session_id: str) -> int | None: ...

    def gpu_ms_left(self, agent: str, session_id: str) -> int | None: ...


class Health:
    """Breakers by model and retry budgets by provider, shared by all turns."""

    def __init__(self, clock: Clock, config: Callable[[], Config]) -> None:
        self._clock = clock
        self._config = config
        self._breakers: dict[str, Breaker] = {}
        self._budgets: dict[str, RetryBudget] = {}

    def breaker(self, model: str) -> Breaker:
        return self._breakers.get(model, Breaker())

    def budget(self, provider: str) -> RetryBudget:
        return self._budgets.get(provider, RetryBudget())

    def spend(self, provider: str, budget: RetryBudget) -> None:
        self._budgets[provider] = budget

    def take_for_hedge(self, provider: str) -> bool:
        """Take a second request from a provider's retry budget; False when it holds too little."""
        left = self.budget(provider).take(TRANSIENT_TOKENS)
        if left is not None:
            self.spend(provider, left)
        return left is not None

    def started(self, model: str) -> int:
        """An attempt starts; the number it is told by when it ends."""
        breaker = breakers.started(self.breaker(model), self._clock.monotonic())
        self._breakers[model] = breaker
        return breaker.made

    def ended(self, model: str, number: int) -> None:
        """An attempt ended in a way that says nothing of the backend."""
        self._breakers[model] = breakers.ended(self.breaker(model), number)

    def succeeded(self, model: str, number: int, provider: str, refund: int) -> None:
        """An attempt came back well; `refund` is what its retry took from the budget, if it was
        one (`router.retry.Retry.refund`)."""
        now_s = self._clock.monotonic()
        self._breakers[model] = breakers.succeeded(self.breaker(model), number, now_s)
        self._budgets[provider] = self.budget(provider).give(max(refund, 1))

    def failed(self, model: str, number: int, failure: Failure, reason: str) -> None:
        if not failure.counts_for_breaker:
            self.ended(model, number)
            return
        self._breakers[model] = breakers.failed(
            self.breaker(model),
            number,
            self._clock.monotonic(),
            reason,
            is_fatal=failure.is_fatal,
            limits=self._config().routing.breaker,
        )

    def rest_note(self, model: str) -> str:
        """Why its breaker is open and when it is tried again, in words; empty when it is not."""
        breaker, now_s = self.breaker(model), self._clock.monotonic()
        if breaker.state(now_s) is not BreakerState.OPEN:
            return ""
        wait_s = breaker.opens_again_in_s(now_s)
        again = f"tried again in {wait_s:.0f} s" if wait_s else "being tried"
        return f"{breaker.reason}; {again}"

    def states(self) -> Mapping[str, Breaker]:
        return dict(self._breakers)


class Places:
    """Describes every configured model as the router's `TargetFacts`."""

    def __init__(
        self,
        config: Callable[[], Config],
        capacity: Callable[[], Capacity],
        health: Health,
        door: Door,
        purse: Purse,
        clock: Clock,
    ) -> None:
        self._config = config
        self._capacity = capacity
        self._health = health
        self._door = door
        self._purse = purse
        self._clock = clock

    def describe(
        self, names: tuple[str, ...], agent: str, session_id: str, turn_micro_usd: int
    ) -> list[TargetFacts]:
        """One `TargetFacts` per name that is configured, in the order given. `turn_micro_usd` is
        what the turn itself may still spend, whatever the budgets leave."""
        config, capacity = self._config(), self._capacity()
        budget = self._purse.left_micro_usd(agent, session_id)
        left = max(turn_micro_usd if budget is None else min(budget, turn_micro_usd), 0)
        has_slot_time = self._purse.gpu_ms_left(agent, session_id) != 0
        return [
            self._facts(name, config.models[name], capacity.models.get(name), left, has_slot_time)
            for name in names
            if name in config.models
        ]

    def shut_note(self, model: str) -> str:
        """Why nothing is sent to a model of the cloud now, in words; empty when something is."""
        return self._door.obstacle(model) or self._health.rest_note(model)

    def _facts(
        self,
        name: str,
        model: ModelConfig,
        now: ModelCapacity | None,
        left: int,
        has_slot_time: bool,
    ) -> TargetFacts:
        in_cloud = is_cloud(model)
        measured = now.tokens_per_s if now is not None else None
        obstacle = self._door.obstacle(name) if in_cloud else ""
        guess = DEFAULT_CLOUD_TOKENS_PER_S if in_cloud else DEFAULT_LOCAL_TOKENS_PER_S
        return TargetFacts(
            name=name,
            place=Place.CLOUD if in_cloud else Place.LOCAL,
            context_window=model.context_window,
            supports_tools=model.tools,
            supports_images=getattr(model, "images", False),
            prices=_prices(model),
            is_resident=now is not None and now.resident,
            queue=now.waiting if now is not None else 0,
            wait_s=now.predicted_wait_s if now is not None else 0.0,
            load_s=now.load_s if now is not None and not now.resident and not in_cloud else 0.0,
            first_token_s=CLOUD_FIRST_TOKEN_S if in_cloud else 0.0,
            tokens_per_s=measured or guess,
            breaker=BreakerState.OPEN
            if now is not None and now.state is ResidentState.BROKEN
            else self._health.breaker(name).state(self._clock.monotonic()),
            budget_left_micro_usd=left if in_cloud else None if has_slot_time else SPENT,
            rate_limit_tokens_left=self._door.rate_limit_tokens_left(name) if in_cloud else None,
            permitted=not obstacle,
            max_label=Label.INTERNAL,
            shut_note=obstacle or self._health.rest_note(name),
        )


def _prices(model: ModelConfig) -> Prices:
    if not isinstance(model, RemoteModel | ClaudeModel):
        return Prices()
    return Prices(
        model.prices.input_micro_usd,
        model.prices.output_micro_usd,
        model.prices.cache_read_micro_usd,
        model.prices.cache_write_micro_usd,
    )


def provider_of(model: ModelConfig) -> str:
    """Whose retry budget a model draws on: the host for what leaves, the model for the rest."""
    if isinstance(model, RemoteModel | ClaudeModel | ScriptedModel) and model.base_url:
        return model.base_url
    return THIS_MACHINE
