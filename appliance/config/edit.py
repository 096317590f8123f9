"""Changes a text of `config.toml` and leaves its comments, order and spacing as they are."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.config.check import did_you_mean
from appliance.config.load import parse
from appliance.errors import NotFound

if TYPE_CHECKING:
    from tomlkit.items import Array


def set_agent_model(text: str, agent: str, model: str, path: Path = Path("config.toml")) -> str:
    """The text with `model` first in the agent's chain; the rest of the chain stays behind it.

    Raises `NotFound` for an unknown agent or model, and `ConfigError` if the text was invalid or
    the change would make it so (an agent that may only run locally, bound to a cloud model).
    """
    config = parse(text, path)
    if agent not in config.agents:
        raise NotFound(f"no such agent: {agent!r}", hint=did_you_mean(agent, config.agents))
    if model not in config.models:
        raise NotFound(f"no such model: {model!r}", hint=did_you_mean(model, config.models))
    before = config.agents[agent].models
    if before[0] == model:
        return text
    import tomlkit

    document = tomlkit.parse(text)
    entry: MutableMapping[str, Any] = document["agents"][agent]
    _put(entry["models"], (model, *(name for name in before if name != model)))
    changed = tomlkit.dumps(document)
    parse(changed, path)
    return changed


def _put(array: Array, values: Sequence[str]) -> None:
    """The values in place of the array's own, element by element so that its comments stay."""
    for index, value in enumerate(values):
        if index < len(array):
            array[index] = value
        else:
            array.append(value)
    while len(array) > len(values):
        array.pop()
