"""`appliance agents set-model` changes one value of the file and not a comment more."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config.edit import set_agent_model
from appliance.config.load import parse
from appliance.errors import ConfigError, NotFound

EXAMPLE = (Path(__file__).parents[2] / "config.toml").read_text()
PATH = Path("config.toml")


def changed_lines(before: str, after: str) -> list[tuple[str, str]]:
    pairs = zip(before.splitlines(), after.splitlines(), strict=True)
    return [pair for pair in pairs if pair[0] != pair[1]]


def test_one_line_changes_and_every_comment_stays() -> None:
    after = set_agent_model(EXAMPLE, "backend", "claude")
    assert changed_lines(EXAMPLE, after) == [
        ('models = ["smollm2", "claude"]', 'models = ["claude", "smollm2"]')
    ]
    assert parse(after, PATH).agents["backend"].models == ("claude", "smollm2")


def test_a_model_that_was_not_in_the_chain_comes_first_and_the_rest_stays() -> None:
    text = EXAMPLE + '\n[models.extra]\nengine = "llamacpp"\nfile = "extra.gguf"\n'
    after = set_agent_model(text, "qa", "extra")
    assert parse(after, PATH).agents["qa"].models == ("extra", "smollm2")


def test_comments_inside_a_chain_stay() -> None:
    text = EXAMPLE.replace(
        'models = ["smollm2", "claude"]\npolicy = "balanced"',
        'models = [\n    "smollm2",  # mine\n    "claude",  # theirs\n]\npolicy = "balanced"',
    )
    after = set_agent_model(text, "cto", "claude")
    assert '"claude",  # mine' in after
    assert parse(after, PATH).agents["cto"].models == ("claude", "smollm2")


def test_the_model_an_agent_has_already_changes_nothing() -> None:
    assert set_agent_model(EXAMPLE, "qa", "smollm2") == EXAMPLE


def test_an_unknown_agent_or_model_is_not_found_with_a_suggestion() -> None:
    with pytest.raises(NotFound) as agent:
        set_agent_model(EXAMPLE, "bakend", "smollm2")
    assert agent.value.hint == "did you mean 'backend'?"
    with pytest.raises(NotFound) as model:
        set_agent_model(EXAMPLE, "backend", "smollm")
    assert model.value.hint == "did you mean 'smollm2'?"


def test_a_change_that_would_break_the_file_is_refused() -> None:
    text = (
        '[models.a]\nengine = "llamacpp"\nfile = "a"\nembeddings = true\n'
        '[models.b]\nengine = "llamacpp"\nfile = "b"\nslots = 0\n[agents.x]\nmodels = ["a"]\n'
    )
    with pytest.raises(ConfigError, match="slots"):
        set_agent_model(text, "x", "b")
