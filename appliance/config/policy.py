"""`[routing]` and `[budgets]`: what a better answer, a second and a dollar are worth."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from appliance.config.units import Section, Usd, subsection


class RetryConfig(Section):
    """The one retry loop for calls that leave the machine."""

    attempts_max: int = Field(3, ge=1, le=10, description="Attempts of one call, first included.")
    backoff_ms: int = Field(
        250, ge=1, le=60_000, description="First wait; doubles, fully jittered, to backoff_ms_max."
    )
    backoff_ms_max: int = Field(8_000, ge=1, le=600_000, description="Longest wait of our own.")
    retry_after_s_max: float = Field(
        30.0,
        ge=0,
        le=3_600,
        description="Longest retry-after that is waited for; else go local.",
    )
    hedge: bool = Field(False, description="Send a second request when the first is slow to start.")


class BreakerConfig(Section):
    """When a provider's model is left alone for a while."""

    failures: int = Field(5, ge=1, le=1_000, description="Failures in a row that open it.")
    open_s: float = Field(5.0, gt=0, le=3_600, description="First time open; doubles each time.")
    open_s_max: float = Field(30.0, gt=0, le=86_400, description="Longest time open.")


class RoutingConfig(Section):
    """How the router weighs local against cloud, where policy leaves it the choice."""

    quality_usd: float = Field(
        0.05, ge=0, le=1_000, description="Dollars a right answer instead of a wrong one is worth."
    )
    second_usd: float = Field(
        0.0005, ge=0, le=100, description="Dollars a second less of waiting is worth."
    )
    switch_usd: float = Field(
        0.002, ge=0, le=100, description="Dollars gained below which a session stays where it is."
    )
    explore_share: float = Field(
        0.02, ge=0, le=0.5, description="Share of free choices taken otherwise, to learn from."
    )
    learn: bool = Field(True, description="Learn the score from outcomes.")
    escalate: bool = Field(
        True, description="Repeat a step in the cloud when the local answer looks bad."
    )
    escalate_below: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Local answers that are right with this probability are kept, whatever another "
        "would be worth.",
    )
    retry: RetryConfig = subsection(RetryConfig)
    breaker: BreakerConfig = subsection(BreakerConfig)


class Budget(Section):
    """Caps on what leaves the machine and on the GPU. What is left out is not capped."""

    session_micro_usd: Usd | None = Field(
        None, alias="session_usd", description="Dollars of one session."
    )
    day_micro_usd: Usd | None = Field(None, alias="day_usd", description="Dollars a day (UTC).")
    month_micro_usd: Usd | None = Field(
        None, alias="month_usd", description="Dollars a calendar month (UTC)."
    )
    day_cloud_tokens: int | None = Field(
        None, ge=0, le=10**15, description="Tokens sent and received in the cloud a day."
    )
    day_gpu_s: int | None = Field(
        None, ge=0, le=10**9, description="Seconds of GPU slots used a day."
    )


class BudgetsConfig(Budget):
    """Caps of everybody together, and what happens at them."""

    day_micro_usd: Usd | None = Field(
        5_000_000, alias="day_usd", description="Dollars a day (UTC), everybody together."
    )
    month_micro_usd: Usd | None = Field(
        50_000_000, alias="month_usd", description="Dollars a calendar month (UTC), everybody."
    )
    on_cap: Literal["local", "refuse"] = Field(
        "local", description="At a cap: go on with local models, or refuse the step."
    )
    warn_share: float = Field(0.8, gt=0, le=1, description="Share of a cap at which it warns.")
