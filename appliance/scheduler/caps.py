"""Which caps a call falls under, and which are nearly reached: pure functions over configuration.

Days and months are UTC and named by the wall clock, "2026-11-23" and "2026-11". A call belongs to
the day on which it was reserved, however late its bill comes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from appliance.config.policy import Budget
from appliance.config.schema import Config
from appliance.store.ledger import Cap, Currency, Scope


@dataclass(frozen=True, slots=True)
class Payer:
    """On whose account a call goes."""

    agent: str
    session_id: str


@dataclass(frozen=True, slots=True)
class Limit:
    """A cap together with what it is counted in."""

    currency: Currency
    cap: Cap

    def __str__(self) -> str:
        who = "everybody" if self.cap.scope is Scope.ALL else f"{self.cap.scope} {self.cap.name}"
        return f"{who} {self.cap.period or 'in total'} {self.currency}"


def limits(config: Config, payer: Payer, day: str) -> list[Limit]:
    """Every cap that a call of this payer on this day must keep."""
    found = list(_of(config.budgets, Scope.ALL, "", payer.session_id, day))
    agent = config.agents.get(payer.agent)
    if agent is not None:
        found += _of(agent.budget, Scope.AGENT, payer.agent, payer.session_id, day)
    return found


def standing_limits(config: Config, day: str) -> list[Limit]:
    """The caps that hold without a session, everybody's and each agent's."""
    found = list(_of(config.budgets, Scope.ALL, "", "", day))
    for name, agent in config.agents.items():
        found += _of(agent.budget, Scope.AGENT, name, "", day)
    return found


def day_of(wall_ms: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(wall_ms / 1000))


def _of(budget: Budget, scope: Scope, name: str, session_id: str, day: str) -> Iterator[Limit]:
    month = day[:7]
    money, tokens, gpu = Currency.MICRO_USD, Currency.CLOUD_TOKENS, Currency.GPU_MS
    if budget.day_micro_usd is not None:
        yield Limit(money, Cap(scope, name, day, budget.day_micro_usd))
    if budget.month_micro_usd is not None:
        yield Limit(money, Cap(scope, name, month, budget.month_micro_usd))
    if budget.session_micro_usd is not None and session_id:
        yield Limit(money, Cap(Scope.SESSION, session_id, "", budget.session_micro_usd))
    if budget.day_cloud_tokens is not None:
        yield Limit(tokens, Cap(scope, name, day, budget.day_cloud_tokens))
    if budget.day_gpu_s is not None:
        yield Limit(gpu, Cap(scope, name, day, budget.day_gpu_s * 1000))
