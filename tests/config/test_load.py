"""A mistake in `config.toml` is answered with line, key, what is wrong and what is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config.load import load, parse
from appliance.config.schema import Config
from appliance.errors import ConfigError
from appliance.types import Label

PATH = Path("/somewhere/config.toml")
MODEL = '[models.tiny]\nengine = "llamacpp"\nfile = "tiny.gguf"\n'
AGENT = '[agents.a]\nmodels = ["tiny"]\n'


def message_of(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, PATH)
    assert caught.value.code == "config_invalid"
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[daemon]\nlog_levle = "info"\n',
            "config.toml:2: daemon.log_levle: unknown key; did you mean 'log_level'?",
        ),
        (
            '[daemon]\n\nlog_level = "inof"\n',
            "config.toml:3: daemon.log_level: 'inof' is none of its values; did you mean 'info'?",
        ),
        (
            "[gpu]\nreserve_bytes = true\n",
            "config.toml:2: gpu.reserve_bytes: write a size such as",
        ),
        (
            '[gpu]\npoll_s = "often"\n',
            "config.toml:2: gpu.poll_s: 'often' should be a number; for example poll_s = 1.0",
        ),
        ("[deamon]\n", "config.toml:1: deamon: unknown key; did you mean 'daemon'?"),
        (
            '[models.x]\nengine = "lamacpp"\nfile = "x"\n',
            "config.toml:2: models.x.engine: no such engine: 'lamacpp'; did you mean 'llamacpp'?",
        ),
        (
            '[models.x]\nfile = "x"\n',
            "config.toml:1: models.x.engine: is missing; write one of llamacpp, vllm",
        ),
        (
            '[models.x]\nengine = "llamacpp"\n',
            "config.toml:1: models.x.file: is missing; A name in models/manifest.toml",
        ),
        (
            f"{MODEL}base_url = 'http://127.0.0.1'\n",
            "config.toml:4: models.tiny.base_url: unknown key; "
            "it is a key of engine remote and claude and scripted",
        ),
        (
            f"{MODEL}gpu_layers = 'some'\n",
            "config.toml:4: models.tiny.gpu_layers: 'some' is none of its values",
        ),
        (
            f"{MODEL}slots = 0\n",
            "config.toml:4: models.tiny.slots: 0 should be greater than or equal to 1; "
            "for example slots = 4",
        ),
        (
            f"{MODEL}slots = 2\nslots_min = 4\n",
            "config.toml:5: models.tiny.slots_min: 4 is more than slots; write at most 2",
        ),
        (
            f"{MODEL}sampling = {{ temprature = 1 }}\n",
            "config.toml:4: models.tiny.sampling.temprature: unknown key; "
            "did you mean 'temperature'?",
        ),
        (
            f"{MODEL}{AGENT.replace('tiny', 'tinny')}",
            "config.toml:5: agents.a.models[0]: no such model: 'tinny'; did you mean 'tiny'?",
        ),
        (
            f'{MODEL}{AGENT}tools = [\n  "read_file",\n  "read_flie",\n]\n',
            "config.toml:6: agents.a.tools[1]: no such built-in tool: 'read_flie'; "
            "did you mean 'read_file'?",
        ),
        (
            f'{MODEL}{AGENT}delegates_to = ["a"]\ntools = ["ask_agent"]\n',
            "config.toml:6: agents.a.delegates_to[0]: no such other agent: 'a'",
        ),
        (
            f'{MODEL}{AGENT}policy = "cloud-only"\n',
            "config.toml:6: agents.a.policy: cloud-only, but all its models are local",
        ),
        (
            f"{MODEL}{AGENT}limits = {{ spend_usd_max = -1 }}\n",
            "config.toml:6: agents.a.limits.spend_usd_max: an amount lies between",
        ),
        (
            '[daemon]\nhttp = "0.0.0.0:80"\n',
            "config.toml:2: daemon.http: 0.0.0.0 can be reached by others; use 127.0.0.1:80",
        ),
        ('[mcp."bad name"]\nurl = "http://x"\n', "config.toml:1: mcp.bad name: 'bad name' is not"),
        ('[mcp.a__b]\nurl = "http://x"\n', "config.toml:1: mcp.a__b: 'a__b' cannot name an MCP"),
        (
            f'{MODEL}{AGENT}read_only = ["tests", "../etc"]\n',
            "config.toml:6: agents.a.read_only: '../etc' is no path below the workspace",
        ),
        ("[mcp.x]\n", "config.toml:1: mcp.x: write either command or url"),
        ("[gpu]\npoll_s = 1\npoll_s = 2\n", "config.toml:3: not valid TOML: "),
        ("[gpu\n", "config.toml:1: not valid TOML: "),
        ("[gpu]\nname = text\n", "config.toml:2: not valid TOML: Invalid value"),
        ("x = " + "[" * 5_000, "config.toml:1: not valid TOML: nested too deeply"),
        ("x = " + "1" * 5_000, "config.toml:1: not valid TOML: a number is too long"),
    ],
)
def test_a_mistake_is_named_with_line_key_and_cure(text: str, message: str) -> None:
    assert message_of(text).startswith(message)


def test_all_mistakes_are_listed_at_once_in_the_order_of_the_file() -> None:
    message = message_of('[gpu]\npoll_s = "x"\n[daemon]\nhtpp = ""\ndrain_s = -1\n')
    assert [line.split(": ")[1] for line in message.splitlines()] == [
        "gpu.poll_s",
        "daemon.htpp",
        "daemon.drain_s",
    ]


def test_the_problems_come_as_data_too() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("[gpu]\npol_s = 1\n", PATH)
    assert caught.value.details["problems"] == [
        {
            "file": "/somewhere/config.toml",
            "line": 2,
            "key": "gpu.pol_s",
            "what": "unknown key",
            "hint": "did you mean 'poll_s'?",
        }
    ]


def test_the_value_of_an_unknown_key_is_never_repeated() -> None:
    secret = "sk-ant-very-secret"
    text = f'[models.c]\nengine = "claude"\nmodel = "m"\napi_key = "{secret}"\n'
    assert secret not in message_of(text)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    text = '[models.r]\nengine = "remote"\nmodel = "m"\nbase_url = "http://me:hidden@host/v1"\n'
    message = message_of(text)
    assert "a URL holds no password" in message
    assert "hidden" not in message


CLOUD = '[models.c]\nengine = "claude"\nmodel = "m"\n'


@pytest.mark.parametrize(
    ("rest", "key"),
    [
        ('[network]\nair_gap = true\n[agents.a]\nmodels = ["c"]\n', "agents.a.models"),
        ('[agents.a]\nmodels = ["c"]\nlabel = "private"\n', "agents.a.models"),
        ('[agents.a]\nmodels = ["c"]\npolicy = "local-only"\n', "agents.a.models"),
        (
            '[network]\nair_gap = true\n[agents.a]\nmodels = ["c"]\npolicy = "cloud-only"\n',
            "agents.a.policy",
        ),
        (
            '[agents.a]\nmodels = ["c"]\npolicy = "cloud-only"\nlabel = "private"\n',
            "agents.a.policy",
        ),
    ],
)
def test_an_agent_without_any_place_to_run_is_a_mistake(rest: str, key: str) -> None:
    assert f": {key}: " in message_of(CLOUD + rest)


def test_a_remote_model_on_loopback_is_local() -> None:
    text = (
        '[network]\nair_gap = true\n[models.r]\nengine = "remote"\nmodel = "m"\n'
        'base_url = "http://127.0.0.1:9000/v1/"\n[agents.a]\nmodels = ["r"]\nlabel = "private"\n'
    )
    assert parse(text, PATH).models["r"].base_url == "http://127.0.0.1:9000/v1"  # type: ignore[union-attr]


def test_sizes_and_money_are_integers_inside() -> None:
    text = (
        '[gpu]\nreserve_bytes = "1.5GiB"\n[budgets]\nday_usd = 0.25\n[tools]\ndisk_max_bytes = 5\n'
    )
    config = parse(text, PATH)
    assert config.gpu.reserve_bytes == 3 << 29
    assert config.budgets.day_micro_usd == 250_000
    assert parse("[gpu]\nreserve_bytes = 5\n", PATH).gpu.reserve_bytes == 5


def test_an_agent_overrides_only_the_limits_it_names() -> None:
    config = parse(f"{MODEL}{AGENT}limits = {{ steps_max = 2 }}\n", PATH)
    assert config.limits_of("a").steps_max == 2
    assert config.limits_of("a").turn_s_max == config.daemon.limits.turn_s_max


def test_an_empty_file_is_a_valid_configuration() -> None:
    assert parse("", PATH) == Config.model_validate({})


def test_the_revision_ignores_comments_and_spelled_out_defaults() -> None:
    plain = parse(MODEL + AGENT, PATH)
    spelt = parse(f"# hello\n{AGENT}weight = 1\n{MODEL}slots = 4\n[gpu]\npoll_s = 1\n", PATH)
    assert plain.revision == spelt.revision
    assert plain.revision != parse(f"{MODEL}slots = 5\n{AGENT}", PATH).revision
    assert len(plain.revision) == 12


def test_a_label_is_parsed_to_the_word_every_room_uses() -> None:
    assert parse(f'{MODEL}{AGENT}label = "private"\n', PATH).agents["a"].label is Label.PRIVATE


def test_a_prompt_file_is_read_and_counts_for_the_revision(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f'{MODEL}{AGENT}system_prompt_file = "prompt.md"\n')
    with pytest.raises(ConfigError, match=r"config.toml:6: agents.a.system_prompt_file: prompt.md"):
        load(path)
    (tmp_path / "prompt.md").write_text("Be kind.")
    first = load(path)
    assert first.agents["a"].system_prompt == "Be kind."
    (tmp_path / "prompt.md").write_text("Be brief.")
    assert load(path).revision != first.revision


def test_a_file_that_is_missing_a_folder_binary_or_huge_is_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    with pytest.raises(ConfigError, match="No such file"):
        load(path)
    with pytest.raises(ConfigError, match="directory"):
        load(tmp_path)
    path.write_bytes(b"# fine\n\xff\xfe")
    with pytest.raises(ConfigError, match=r"config.toml:2: not UTF-8"):
        load(path)
    path.write_bytes(b"#" * (5 << 20))
    with pytest.raises(ConfigError, match="larger than 4 MiB"):
        load(path)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xef\xbb\xbf[gpu]\npoll_s = 2\n")
    assert load(path).gpu.poll_s == 2
