"""The whole of `config.toml` as one frozen value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated

from pydantic import Field, StringConstraints

from appliance.config.agents import AgentConfig
from appliance.config.machine import AccessConfig, DaemonConfig, GpuConfig, Limits, NetworkConfig
from appliance.config.models import ModelConfig
from appliance.config.policy import BudgetsConfig, RoutingConfig
from appliance.config.tools import McpConfig, ToolsConfig
from appliance.config.units import Section, subsection

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
"""Name of a model, agent or MCP server: letters, digits, `_ . -`, at most 64."""


class Config(Section):
    """Everything the daemon is told. Made by `load.load`; compared by `diff.diff`."""

    daemon: DaemonConfig = subsection(DaemonConfig)
    network: NetworkConfig = subsection(NetworkConfig)
    gpu: GpuConfig = subsection(GpuConfig)
    models: Mapping[Name, ModelConfig] = Field(default_factory=dict)
    agents: Mapping[Name, AgentConfig] = Field(default_factory=dict)
    routing: RoutingConfig = subsection(RoutingConfig)
    budgets: BudgetsConfig = subsection(BudgetsConfig)
    tools: ToolsConfig = subsection(ToolsConfig)
    mcp: Mapping[Name, McpConfig] = Field(default_factory=dict)
    access: AccessConfig = subsection(AccessConfig)

    @cached_property
    def revision(self) -> str:
        """Twelve hex digits that name the content: comments, order and defaults spelled out do
        not change it."""
        content = json.dumps(self.model_dump(mode="json", by_alias=False), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def limits_of(self, agent: str) -> Limits:
        """The limits of this agent's turns: its own where it says so, else the daemon's."""
        own = self.agents[agent].limits.model_dump(by_alias=False, exclude_none=True)
        return self.daemon.limits.model_copy(update=own)
