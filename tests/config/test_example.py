"""The example `config.toml` is valid, is what a default would be, and leaves no key out."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.config.agents import AgentConfig, ApprovalRule
from appliance.config.default import default_config_text, write_default_config
from appliance.config.describe import ENGINES, keys_of
from appliance.config.load import load, parse
from appliance.config.models import Prices, SamplingConfig
from appliance.config.schema import Config
from appliance.config.tools import McpConfig
from appliance.config.units import Section

EXAMPLE = Path(__file__).parents[2] / "config.toml"
SETTINGS = ("daemon", "network", "gpu", "routing", "budgets", "tools", "access")


def uncommented() -> str:
    """The example with every commented-out key and table brought to life."""
    return re.sub(r"(?m)^# (?=\[|\w+ = )", "", EXAMPLE.read_text())


def tables(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict]]:
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from tables(value, (*path, key))
    elif isinstance(node, list):
        for value in node:
            yield from tables(value, path)


def sections(kind: type[Section]) -> Iterator[type[Section]]:
    """This section and the fixed ones inside it."""
    yield kind
    for field in kind.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from sections(field.annotation)


def test_the_example_is_valid_and_names_the_default_team() -> None:
    config = load(EXAMPLE)
    assert list(config.agents) == ["assistant", "cto", "backend", "frontend", "qa"]
    assert config.agents["assistant"].models[0] == "smollm2"


def test_the_example_with_every_comment_removed_is_valid_too() -> None:
    config = parse(uncommented(), EXAMPLE)
    assert {model.engine for model in config.models.values()} == set(ENGINES)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_in_the_example_are_the_defaults(name: str) -> None:
    assert getattr(load(EXAMPLE), name) == getattr(Config.model_validate({}), name)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_stands_in_the_example(name: str) -> None:
    raw = tomllib.loads(uncommented())
    wanted = {
        key for kind in sections(Config.model_fields[name].annotation) for key in keys_of(kind)
    }
    there = {key for _, table in tables(raw[name]) for key in table}
    assert wanted <= there, f"missing in [{name}]: {sorted(wanted - there)}"


@pytest.mark.parametrize("engine", ENGINES)
def test_every_key_of_an_engine_stands_in_an_entry_of_the_example(engine: str) -> None:
    entries = tomllib.loads(uncommented())["models"].values()
    there = {key for entry in entries if entry["engine"] == engine for key in entry}
    assert set(keys_of(ENGINES[engine])) <= there


@pytest.mark.parametrize("kind", [AgentConfig, ApprovalRule, McpConfig, SamplingConfig, Prices])
def test_every_key_of_a_named_section_stands_in_the_example(kind: type[Section]) -> None:
    there = {key for _, table in tables(tomllib.loads(uncommented())) for key in table}
    assert set(keys_of(kind)) <= there


def test_every_key_has_a_description_or_holds_a_section_that_has() -> None:
    kinds = [Config, AgentConfig, ApprovalRule, McpConfig, *ENGINES.values()]
    for kind in (inner for outer in kinds for inner in sections(outer)):
        for name, field in kind.model_fields.items():
            holds_section = isinstance(field.annotation, type) and issubclass(
                field.annotation, Section
            )
            if kind is not Config and name != "engine" and not holds_section:
                assert field.description, f"{kind.__name__}.{name}"


def test_a_new_home_gets_the_example_once_and_keeps_its_own_after(tmp_path: Path) -> None:
    path = tmp_path / "home" / "config.toml"
    assert write_default_config(path)
    assert path.read_text() == default_config_text() == EXAMPLE.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("# mine\n")
    assert not write_default_config(path)
    assert path.read_text() == "# mine\n"
