"""What the types cannot say: whether the sections of a configuration agree with each other."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from appliance.config.agents import AgentConfig, RoutePolicy
from appliance.config.models import (
    LlamaCppModel,
    ModelConfig,
    ScriptedModel,
    leaves_machine,
)
from appliance.config.positions import KeyPath
from appliance.config.schema import Config
from appliance.config.tools import BUILT_IN_TOOLS
from appliance.types import Label

_MCP_NAME = re.compile(r"[A-Za-z0-9-]+(_[A-Za-z0-9-]+)*")
"""Its tools are called `name__tool`: the two parts must come apart again, and providers take no
dot in a tool's name."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, where, and what would be right."""

    path: KeyPath
    what: str
    hint: str = ""


def disagreements(config: Config) -> Iterator[Problem]:
    """Everything in which the sections contradict each other, in the order of the file."""
    for name, model in config.models.items():
        yield from _model(("models", name), model)
    for name, agent in config.agents.items():
        yield from _names(("agents", name), agent, config)
        yield from _place_to_run(("agents", name), agent, config)
    for name, server in config.mcp.items():
        if server.network and config.network.air_gap:
            yield Problem(
                ("mcp", name, "network"),
                "the whole network cannot be with [network] air_gap = true",
                "leave it out, or open the air gap",
            )
        if not _MCP_NAME.fullmatch(name):
            yield Problem(
                ("mcp", name),
                f"{name!r} cannot name an MCP server: its tools are called {name}__TOOL",
                "use letters, digits, - and single _ between them",
            )
    retry = config.routing.retry
    if retry.backoff_ms > retry.backoff_ms_max:
        yield Problem(("routing", "retry", "backoff_ms"), "is more than backoff_ms_max")


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """A hint that names the likeliest of `known`, or lists them."""
    names = sorted(known)
    if near := difflib.get_close_matches(wrong, names, n=1, cutoff=0.6):
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(names)}" if names else "none is defined"


def _model(path: KeyPath, model: ModelConfig) -> Iterator[Problem]:
    if isinstance(model, LlamaCppModel):
        if model.context_window_min > model.context_window:
            yield Problem(
                (*path, "context_window_min"),
                f"{model.context_window_min} is more than context_window",
                f"write at most {model.context_window}",
            )
        if model.slots_min > model.slots:
            yield Problem(
                (*path, "slots_min"),
                f"{model.slots_min} is more than slots",
                f"write at most {model.slots}",
            )
    if isinstance(model, ScriptedModel) and bool(model.script) == bool(model.base_url):
        yield Problem(path, "needs a script or a base_url", "write one of the two, not both")


def _names(path: KeyPath, agent: AgentConfig, config: Config) -> Iterator[Problem]:
    others = [name for name in config.agents if name != path[-1]]
    for key, names, known in (
        ("models", agent.models, config.models),
        ("mcp", agent.mcp, config.mcp),
        ("delegates_to", agent.delegates_to, others),
        ("tools", agent.tools, BUILT_IN_TOOLS),
    ):
        for index, name in enumerate(names):
            if name not in known:
                what = {
                    "models": "no such model",
                    "mcp": "no such MCP server",
                    "delegates_to": "no such other agent",
                    "tools": "no such built-in tool",
                }[key]
                yield Problem((*path, key, index), f"{what}: {name!r}", did_you_mean(name, known))
            elif name in names[:index]:
                yield Problem((*path, key, index), f"{name!r} stands there twice", "write it once")
    if agent.delegates_to and "ask_agent" not in agent.tools:
        yield Problem(
            (*path, "delegates_to"),
            "this agent has no means to ask others",
            "add 'ask_agent' to its tools",
        )
    adapters = {
        adapter
        for name in agent.models
        if isinstance(model := config.models.get(name), LlamaCppModel)
        for adapter in model.adapters
    }
    if agent.adapter and agent.adapter not in adapters:
        yield Problem(
            (*path, "adapter"),
            f"none of its models has an adapter {agent.adapter!r}",
            did_you_mean(agent.adapter, adapters),
        )


def _place_to_run(path: KeyPath, agent: AgentConfig, config: Config) -> Iterator[Problem]:
    """Whether policy, label and air gap leave the agent any of its models."""
    chain = [config.models[name] for name in agent.models if name in config.models]
    if len(chain) < len(agent.models):
        return
    if all(getattr(model, "embeddings", False) for model in chain):
        yield Problem(
            (*path, "models"), "all of them only embed", "add a model that generates text"
        )
    cloud = [model for model in chain if leaves_machine(model)]
    is_all_cloud = len(cloud) == len(chain)
    if agent.policy is RoutePolicy.CLOUD_ONLY:
        if not cloud:
            yield Problem(
                (*path, "policy"),
                "cloud-only, but all its models are local",
                "add a cloud model to models, or write local-first",
            )
        if config.network.air_gap:
            yield Problem(
                (*path, "policy"),
                "cloud-only cannot be with [network] air_gap = true",
                "write local-only, or open the air gap",
            )
        if agent.label is Label.PRIVATE:
            yield Problem(
                (*path, "policy"),
                "cloud-only, but label = 'private' never leaves this machine",
                "write local-only, or lower the label",
            )
    elif is_all_cloud and agent.policy is RoutePolicy.LOCAL_ONLY:
        yield Problem(
            (*path, "models"), "local-only, but none of them is local", "add a local model"
        )
    elif is_all_cloud and config.network.air_gap:
        yield Problem(
            (*path, "models"),
            "none of them is local, and [network] air_gap = true",
            "add a local model",
        )
    elif is_all_cloud and agent.label is Label.PRIVATE:
        yield Problem(
            (*path, "models"),
            "none of them is local, and label = 'private' never leaves this machine",
            "add a local model",
        )
