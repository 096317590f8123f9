"""`[tools]` and `[mcp.NAME]`: what agents act with, and how it is contained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from appliance.config.models import check_url
from appliance.config.units import ByteSize, Host, Section
from appliance.types import Effect, Label

BUILT_IN_TOOLS = (
    "read_file",
    "write_file",
    "edit_file",
    "list_files",
    "search_files",
    "shell",
    "fetch",
    "ask_agent",
    "remember",
    "recall",
)
"""Names an agent's `tools` may hold; the tools room holds one implementation of each."""


class LabelRule(Section):
    """What of the tools' world is sensitive: all that a tool returns, or files of a workspace."""

    tool: str = Field("", description="Tool name or pattern, such as git__*; or else path.")
    path: str = Field(
        "",
        description="File, folder or pattern in a workspace, such as .env, secrets or *.pem; * "
        "stands for folders too.",
    )
    label: Label = Field(description="Least sensitivity: public, internal or private.")

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        if bool(self.tool) == bool(self.path):
            raise ValueError("write either tool or path")
        return self


class ToolsConfig(Section):
    """The sandbox and the bounds of every tool."""

    sandbox: Literal["auto", "bubblewrap", "landlock", "none-i-accept-the-risk"] = Field(
        "auto", description="How a tool's process is contained; auto: the strongest that works."
    )
    workspace_dir: str = Field(
        "", description="Folder of the sessions' workspaces; empty: state/workspaces below home."
    )
    timeout_s: float = Field(120.0, gt=0, le=86_400, description="Seconds one call may take.")
    output_max_bytes: ByteSize = Field(
        32 << 10, gt=0, description="Output a model sees; the rest is kept as a file."
    )
    memory_max_bytes: ByteSize = Field(
        2 << 30, gt=0, description="Host RAM of one call, its children included."
    )
    processes_max: int = Field(128, ge=1, le=100_000, description="Processes of one call.")
    disk_max_bytes: ByteSize = Field(1 << 30, gt=0, description="Largest file a call may write.")
    fetch_enabled: bool = Field(
        False, description="Whether the tool fetch works, for [network] allowed_hosts."
    )
    labels: tuple[LabelRule, ...] = Field(
        (), max_length=256, description="What is sensitive: tools and files, with their labels."
    )
    approval_s: float = Field(
        86_400.0, gt=0, le=31_536_000, description="Seconds a question waits before it expires."
    )


class McpConfig(Section):
    """One MCP server: a program (command) or a URL (streamable HTTP)."""

    command: tuple[str, ...] = Field((), description="Program and its arguments (stdio).")
    url: str = Field("", description="Address of a server over HTTP, instead of command.")
    environment: Mapping[str, str] = Field(
        default_factory=dict, description="Environment of the program; never secrets."
    )
    secrets: tuple[str, ...] = Field(
        (), description="Environment variables or systemd credentials passed on to the program."
    )
    key_env: str = Field(
        "", description="Variable or credential with the bearer token of a URL; empty: none."
    )
    tools: tuple[str, ...] = Field((), description="Tools taken over, by pattern; empty: all.")
    effects: Mapping[str, Effect] = Field(
        default_factory=dict,
        description="Effect by the server's tool name: read, idempotent or once. Overrides what "
        "the server says of its tools; where neither speaks, once.",
    )
    label: Label = Field(Label.INTERNAL, description="Sensitivity of what it returns.")
    sandbox: bool = Field(True, description="Whether the program runs in the tools' sandbox.")
    hosts: tuple[Host, ...] = Field(
        (),
        max_length=64,
        description="Hosts the program may reach, as name, name:port or *.name, through a proxy "
        "of the daemon; empty: none.",
    )
    network: bool = Field(
        False, description="Whether the program may use the whole network, past the daemon."
    )
    paths: tuple[str, ...] = Field((), description="Folders the program may write.")
    start_timeout_s: float = Field(20.0, gt=0, le=600, description="Seconds a start may take.")
    timeout_s: float = Field(60.0, gt=0, le=86_400, description="Seconds one call may take.")

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        return check_url(value) if value else value

    @field_validator("secrets")
    @classmethod
    def _secrets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not re.match(r"^[A-Za-z_][A-Za-z0-9_.-]*$", name):
                raise ValueError(f"{name!r} is not a name; write the name, never the secret")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.command) == bool(self.url):
            raise ValueError("write either command or url")
        if self.hosts and (self.url or self.network or not self.sandbox):
            raise ValueError("hosts are for a command in the sandbox without network = true")
        return self
