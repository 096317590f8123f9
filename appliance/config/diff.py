"""Two configurations as the list of what changed, in words the daemon can act on.

Pure: it says what differs and what that costs (a reload of a model, a restart of the daemon), and
nothing about how. Applying is the daemon's. The order of changes is the order in which they are
safe: settings, then new models, then agents that may use them, then models nobody names any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from appliance.config.agents import AgentConfig
from appliance.config.models import ModelConfig
from appliance.config.schema import Config
from appliance.config.tools import McpConfig
from appliance.config.units import Section
from appliance.types import Json

RESTART_KEYS = frozenset(
    {
        "daemon.http",
        "daemon.http_hosts",
        "daemon.socket",
        "daemon.state_dir",
        "daemon.models_dir",
        "gpu.devices",
        "tools.workspace_dir",
    }
)
"""Settings that are bound once: a change holds from the next start on."""

LIVE_MODEL_KEYS = frozenset(
    {
        "description",
        "idle_unload_s",
        "keep_resident",
        "key_credential",
        "key_env",
        "max_output_tokens",
        "prices",
        "priority",
        "quality",
        "request_timeout_s",
        "sampling",
        "start_timeout_s",
        "tools",
    }
)
"""Keys of a model that a loaded instance needs no reload for."""


@dataclass(frozen=True, slots=True)
class SettingChanged:
    """`key` as the file writes it, such as `daemon.log_level`."""

    key: str
    before: Json
    after: Json
    needs_restart: bool


@dataclass(frozen=True, slots=True)
class ModelAdded:
    model: str


@dataclass(frozen=True, slots=True)
class ModelRemoved:
    """Drain it, then unload it."""

    model: str


@dataclass(frozen=True, slots=True)
class ModelChanged:
    """With `needs_reload`, instances of the old entry are drained and replaced."""

    model: str
    keys: tuple[str, ...]
    needs_reload: bool


@dataclass(frozen=True, slots=True)
class AgentAdded:
    agent: str


@dataclass(frozen=True, slots=True)
class AgentRemoved:
    """Its running turns finish; new ones are refused."""

    agent: str


@dataclass(frozen=True, slots=True)
class AgentRebound:
    """The chain of models changed; steps in flight finish on the model they have."""

    agent: str
    before: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AgentChanged:
    """Keys other than `models`; they hold from its next step on."""

    agent: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class McpAdded:
    server: str


@dataclass(frozen=True, slots=True)
class McpRemoved:
    server: str


@dataclass(frozen=True, slots=True)
class McpChanged:
    server: str
    keys: tuple[str, ...]


Change: TypeAlias = (
    SettingChanged
    | ModelAdded
    | ModelRemoved
    | ModelChanged
    | AgentAdded
    | AgentRemoved
    | AgentRebound
    | AgentChanged
    | McpAdded
    | McpRemoved
    | McpChanged
)

_SETTINGS = ("daemon", "network", "gpu", "routing", "budgets", "tools", "access")


def diff(old: Config, new: Config) -> tuple[Change, ...]:
    """What has to happen to get from `old` to `new`; empty if nothing."""
    return (
        *_settings(old, new),
        *(ModelAdded(name) for name in new.models if name not in old.models),
        *_models(old.models, new.models),
        *(McpAdded(name) for name in new.mcp if name not in old.mcp),
        *_servers(old.mcp, new.mcp),
        *(AgentAdded(name) for name in new.agents if name not in old.agents),
        *_agents(old.agents, new.agents),
        *(AgentRemoved(name) for name in old.agents if name not in new.agents),
        *(McpRemoved(name) for name in old.mcp if name not in new.mcp),
        *(ModelRemoved(name) for name in old.models if name not in new.models),
    )


def needs_restart(changes: tuple[Change, ...]) -> tuple[str, ...]:
    """Keys whose change holds only from the next start on."""
    return tuple(
        change.key
        for change in changes
        if isinstance(change, SettingChanged) and change.needs_restart
    )


def describe(change: Change) -> str:
    """The change in one line, for `appliance config diff` and the log."""
    match change:
        case SettingChanged(key, before, after, restart):
            return f"{key}: {before!r} → {after!r}{' (at the next start)' if restart else ''}"
        case ModelAdded(model):
            return f"models.{model}: added"
        case ModelRemoved(model):
            return f"models.{model}: removed, drained and unloaded"
        case ModelChanged(model, keys, reload):
            return f"models.{model}: {', '.join(keys)}{' (reload)' if reload else ''}"
        case AgentAdded(agent):
            return f"agents.{agent}: added"
        case AgentRemoved(agent):
            return f"agents.{agent}: removed"
        case AgentRebound(agent, models_before, models_after):
            return f"agents.{agent}: {' > '.join(models_before)} → {' > '.join(models_after)}"
        case AgentChanged(agent, keys):
            return f"agents.{agent}: {', '.join(keys)}"
        case McpAdded(server):
            return f"mcp.{server}: added"
        case McpRemoved(server):
            return f"mcp.{server}: removed"
        case McpChanged(server, keys):
            return f"mcp.{server}: {', '.join(keys)}"


def _settings(old: Config, new: Config) -> Iterator[SettingChanged]:
    before, after = (
        {name: getattr(config, name).model_dump(mode="json", by_alias=True) for name in _SETTINGS}
        for config in (old, new)
    )
    flat_before, flat_after = dict(_flat(before)), dict(_flat(after))
    for key, value in flat_after.items():
        if flat_before[key] != value:
            yield SettingChanged(key, flat_before[key], value, key in RESTART_KEYS)


def _flat(tree: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, Json]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _models(
    old: Mapping[str, ModelConfig], new: Mapping[str, ModelConfig]
) -> Iterator[ModelChanged]:
    for name in _kept(old, new):
        if keys := _changed_keys(old[name], new[name]):
            yield ModelChanged(name, keys, needs_reload=not LIVE_MODEL_KEYS.issuperset(keys))


def _servers(old: Mapping[str, McpConfig], new: Mapping[str, McpConfig]) -> Iterator[McpChanged]:
    for name in _kept(old, new):
        if keys := _changed_keys(old[name], new[name]):
            yield McpChanged(name, keys)


def _agents(
    old: Mapping[str, AgentConfig], new: Mapping[str, AgentConfig]
) -> Iterator[AgentRebound | AgentChanged]:
    for name in _kept(old, new):
        before, after = old[name], new[name]
        if before.models != after.models:
            yield AgentRebound(name, before.models, after.models)
        if keys := tuple(key for key in _changed_keys(before, after) if key != "models"):
            yield AgentChanged(name, keys)


def _kept(old: Mapping[str, Section], new: Mapping[str, Section]) -> list[str]:
    """Names that both have, in the newer order."""
    return [name for name in new if name in old]


def _changed_keys(old: Section, new: Section) -> tuple[str, ...]:
    """Keys that differ, in the order of the newer entry; `engine` alone if even that differs."""
    if type(old) is not type(new):
        return ("engine",)
    return tuple(
        field.alias or name
        for name, field in type(new).model_fields.items()
        if getattr(old, name) != getattr(new, name)
    )
