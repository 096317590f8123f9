"""What changed between two configurations, and what each change costs."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from appliance.config.diff import (
    AgentAdded,
    AgentChanged,
    AgentRebound,
    AgentRemoved,
    McpAdded,
    McpChanged,
    McpRemoved,
    ModelAdded,
    ModelChanged,
    ModelRemoved,
    SettingChanged,
    describe,
    diff,
    needs_restart,
)
from appliance.config.load import parse
from appliance.config.schema import Config

PATH = Path("config.toml")


def config(**text: str) -> Config:
    models = {"m": "slots = 4", "n": "slots = 2"} | model_entries(text.get("models", ""))
    lines = [text.get("settings", "")]
    for name, keys in models.items():
        lines.append(f'[models.{name}]\nengine = "llamacpp"\nfile = "{name}.gguf"\n{keys}')
    lines.append(text.get("agents", '[agents.a]\nmodels = ["m"]'))
    return parse("\n".join(lines), PATH)


def model_entries(text: str) -> dict[str, str]:
    """`"o:slots = 3;p:priority = 1"` as names to keys."""
    return dict(entry.split(":") for entry in text.split(";") if entry)


def test_nothing_changed_is_nothing_to_do() -> None:
    assert diff(config(), config()) == ()


def test_rebinding_an_agent_names_both_chains() -> None:
    after = config(agents='[agents.a]\nmodels = ["n", "m"]')
    assert diff(config(), after) == (AgentRebound("a", ("m",), ("n", "m")),)


def test_a_window_needs_a_reload_and_a_priority_does_not() -> None:
    assert diff(config(), config(models="m:context_window = 8192")) == (
        ModelChanged("m", ("context_window",), needs_reload=True),
    )
    assert diff(config(), config(models="m:priority = 3")) == (
        ModelChanged("m", ("priority",), needs_reload=False),
    )


def test_another_engine_under_the_same_name_is_one_change_with_reload() -> None:
    before = parse('[models.m]\nengine = "llamacpp"\nfile = "x"', PATH)
    after = parse('[models.m]\nengine = "vllm"\nfolder = "x"', PATH)
    assert diff(before, after) == (ModelChanged("m", ("engine",), needs_reload=True),)


def test_a_moved_socket_waits_for_a_restart_and_a_log_level_does_not() -> None:
    after = config(settings='[daemon]\nhttp = "127.0.0.1:1"\nlog_level = "debug"')
    changes = diff(config(), after)
    assert changes == (
        SettingChanged("daemon.http", "", "127.0.0.1:1", needs_restart=True),
        SettingChanged("daemon.log_level", "info", "debug", needs_restart=False),
    )
    assert needs_restart(changes) == ("daemon.http",)


def test_money_changes_carry_the_key_of_the_file() -> None:
    (change,) = diff(config(), config(settings="[budgets]\nday_usd = 1"))
    assert isinstance(change, SettingChanged)
    assert change.key == "budgets.day_usd"


def test_models_are_added_before_agents_use_them_and_removed_after() -> None:
    before = config(models="old:slots = 1", agents='[agents.a]\nmodels = ["old"]')
    after = config(
        models="new:slots = 1",
        agents='[mcp.s]\nurl = "http://x"\n[agents.b]\nmodels = ["new"]\nmcp = ["s"]',
    )
    assert diff(before, after) == (
        ModelAdded("new"),
        McpAdded("s"),
        AgentAdded("b"),
        AgentRemoved("a"),
        ModelRemoved("old"),
    )
    assert McpRemoved("s") in diff(after, before)


def test_other_keys_of_agents_and_servers_are_named() -> None:
    server = '[mcp.s]\nurl = "http://x"\n'
    before = config(agents=f'{server}[agents.a]\nmodels = ["m"]')
    after = config(agents=f'{server}timeout_s = 5\n[agents.a]\nmodels = ["m"]\nweight = 2')
    assert diff(before, after) == (McpChanged("s", ("timeout_s",)), AgentChanged("a", ("weight",)))


names = st.sampled_from(["m", "n", "o"])
configs = st.builds(
    lambda slots, chain, weight, poll: parse(
        f"[gpu]\npoll_s = {poll}\n"
        + "".join(
            f'[models.{name}]\nengine = "llamacpp"\nfile = "f"\nslots = {count}\n'
            for name, count in slots.items()
        )
        + "".join(
            f'[agents.{agent}]\nmodels = ["{model}"]\nweight = {weight}\n'
            for agent, model in chain.items()
            if model in slots
        ),
        PATH,
    ),
    st.dictionaries(names, st.integers(1, 3), max_size=3),
    st.dictionaries(st.sampled_from(["a", "b"]), names, max_size=2),
    st.integers(1, 2),
    st.integers(1, 2),
)


@given(before=configs, after=configs)
def test_no_change_means_same_revision_and_every_change_can_be_told(before, after) -> None:
    changes = diff(before, after)
    assert (changes == ()) == (before.revision == after.revision)
    assert all(describe(change) for change in changes)
    assert len(set(map(describe, changes))) == len(changes)
    added = {change.model for change in changes if isinstance(change, ModelAdded)}
    removed = {change.model for change in changes if isinstance(change, ModelRemoved)}
    assert (set(before.models) | added) - removed == set(after.models)
