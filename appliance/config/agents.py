"""`[agents.NAME]`: who works here, with which models, tools, policy and limits."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

from pydantic import Field, field_validator

from appliance.config.models import SamplingConfig
from appliance.config.policy import Budget
from appliance.config.units import Host, Section, Usd, subsection
from appliance.types import Label


class RoutePolicy(StrEnum):
    """Where an agent's steps may run, and where they rather run."""

    LOCAL_ONLY = "local-only"
    LOCAL_FIRST = "local-first"
    BALANCED = "balanced"
    CLOUD_FIRST = "cloud-first"
    CLOUD_ONLY = "cloud-only"


class Decision(StrEnum):
    """What happens to a tool call before it runs."""

    ALLOW = "allow"
    ASK = "ask"
    DENY = "deny"


class ApprovalRule(Section):
    """One rule: the first that fits a call decides. `*` and `?` match as in a shell."""

    tool: str = Field(
        min_length=1, description="Tool name or pattern; git__* is every tool of [mcp.git]."
    )
    arguments: Mapping[str, str] = Field(
        default_factory=dict,
        description="Argument name to pattern; all must match, such as { command = 'git *' }. "
        "A pattern that denies shell text can be written around: allow what may run instead.",
    )
    decision: Decision = Field(description="allow, ask or deny.")


class AgentLimits(Section):
    """Limits of this agent's turns; what is left out is as in `[daemon.limits]`."""

    steps_max: int | None = Field(None, ge=1, le=10_000, description="Model calls in one turn.")
    output_tokens_max: int | None = Field(
        None, ge=1, le=10_000_000, description="Tokens a turn may generate."
    )
    turn_s_max: float | None = Field(
        None,
        gt=0,
        le=604_800,
        description="Seconds a turn may take; waiting for a person does not count.",
    )
    spend_micro_usd_max: Usd | None = Field(
        None, alias="spend_usd_max", description="Dollars a turn may spend in the cloud."
    )
    same_call_max: int | None = Field(
        None, ge=1, le=100, description="Times the same call may give the same result."
    )


class AgentConfig(Section):
    """A named configuration that a session is opened with."""

    description: str = Field("", description="One line; other agents see it when they delegate.")
    models: tuple[str, ...] = Field(
        min_length=1,
        max_length=16,
        description="Names of [models.*], preferred first; policy chooses among them.",
    )
    system_prompt: str = Field(
        "You are a helpful assistant.", description="What the model is told before all else."
    )
    system_prompt_file: str = Field(
        "", description="File used instead of system_prompt (relative: beside config.toml)."
    )
    policy: RoutePolicy = Field(
        RoutePolicy.LOCAL_FIRST,
        description="local-only, local-first, balanced, cloud-first or cloud-only.",
    )
    label: Label = Field(
        Label.INTERNAL,
        description="Least sensitivity of all it handles: public, internal or private. "
        "What is private never leaves the machine.",
    )
    tools: tuple[str, ...] = Field((), description="Built-in tools it may use; empty: none.")
    mcp: tuple[str, ...] = Field((), description="Names of [mcp.*] whose tools it may use.")
    delegates_to: tuple[str, ...] = Field(
        (), description="Agents it may ask with the tool ask_agent."
    )
    approvals: tuple[ApprovalRule, ...] = Field(
        (),
        max_length=256,
        description="Rules for its tool calls, first fit decides; without one, reading is "
        "allowed and everything else is asked.",
    )
    read_only: tuple[str, ...] = Field(
        (),
        max_length=64,
        description="Paths in its workspace that it may read and not write; whole folders count.",
    )
    hidden: tuple[str, ...] = Field(
        (), max_length=64, description="Paths in its workspace that it may not even read."
    )
    shell_hosts: tuple[Host, ...] = Field(
        (),
        max_length=64,
        description="Hosts its shell may reach, as name, name:port or *.name, through a proxy of "
        "the daemon; empty: no network.",
    )
    weight: float = Field(
        1.0, gt=0, le=1_000, description="Its share of a busy GPU, against other agents."
    )
    priority: Literal["interactive", "normal", "background"] = Field(
        "interactive", description="Who goes first when a slot is scarce."
    )
    thinking: bool = Field(False, description="Ask models that can to think first.")
    adapter: str = Field("", description="LoRA adapter of its local model; empty: none.")
    quality_weight: float = Field(
        1.0, ge=0, le=100, description="How much a better answer is worth to it, against [routing]."
    )
    sampling: SamplingConfig = subsection(SamplingConfig, "Overrides the model's defaults.")
    limits: AgentLimits = subsection(AgentLimits, "Limits of a turn.")
    budget: Budget = subsection(Budget, "Caps of this agent alone.")

    @field_validator("read_only", "hidden")
    @classmethod
    def _workspace_paths(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """A path that named nothing in the workspace would protect nothing, and look as if."""
        for path in value:
            parts = [part for part in path.split("/") if part not in ("", ".")]
            if path.startswith("/") or not parts or ".." in parts or set(path) & set("*?[\0"):
                raise ValueError(
                    f"{path!r} is no path below the workspace; write it like tests or src/api, "
                    "without patterns"
                )
        return value
