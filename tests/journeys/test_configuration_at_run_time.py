"""Editing config.toml under a running daemon: applied at once, or refused with line and key."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

from tests.daemons import Daemon, cli, running

CONFIG = """
# who does what
[models.one]
engine = "scripted"
script = "one.json"

[models.two]
engine = "scripted"
script = "two.json"

[agents.assistant]
models = ["one"]          # the model in use
policy = "local-only"
"""


def write(home: Path) -> Path:
    (home / "config.toml").write_text(CONFIG)
    for name in ("one", "two"):
        (home / f"{name}.json").write_text(json.dumps([{"reply": name, "tokens_per_s": 400}]))
    return home


async def until_revision_changes(daemon: Daemon, revision: str) -> None:
    async with asyncio.timeout(60):
        while (await daemon.get("/api/config"))["revision"] == revision:
            await asyncio.sleep(0.01)


async def test_a_saved_edit_rebinds_an_agent_and_drops_nothing(tmp_path: Path) -> None:
    home = write(tmp_path)
    async with running(home) as daemon:
        assert (await daemon.ask("go"))["text"] == "one"
        revision = (await daemon.get("/api/config"))["revision"]
        running_turns = [asyncio.create_task(daemon.ask("go")) for _ in range(8)]
        (home / "config.toml").write_text(CONFIG.replace('models = ["one"]', 'models = ["two"]'))
        await until_revision_changes(daemon, revision)
        assert (await daemon.ask("go"))["text"] == "two"
        texts = [(await task)["text"] for task in running_turns]
        assert set(texts) <= {"one", "two"}


async def test_a_bad_edit_changes_nothing_and_names_line_and_key(tmp_path: Path) -> None:
    home = write(tmp_path)
    async with running(home) as daemon:
        broken = CONFIG.replace('models = ["one"]', 'models = ["nine"]')
        (home / "config.toml").write_text(broken)
        async with asyncio.timeout(60):
            while not (await daemon.get("/api/status"))["config_error"]:
                await asyncio.sleep(0.02)
        status = await daemon.get("/api/status")
        line = next(n for n, text in enumerate(broken.splitlines(), 1) if "nine" in text)
        assert f"config.toml:{line}" in status["config_error"]
        assert "agents.assistant.models" in status["config_error"]
        assert status["state"] == "degraded"
        assert (await daemon.ask("go"))["text"] == "one"
        code, _, err = await cli(home, "config", "check")
        assert code == 2
        assert f":{line}:" in err
        (home / "config.toml").write_text(CONFIG)
        async with asyncio.timeout(60):
            while (await daemon.get("/api/status"))["config_error"]:
                await asyncio.sleep(0.02)


async def test_set_model_edits_the_file_keeping_its_comments(tmp_path: Path) -> None:
    home = write(tmp_path)
    async with running(home) as daemon:
        code, out, err = await cli(home, "agents", "set-model", "assistant", "two")
        assert code == 0, err
        assert "two" in out
        text = (home / "config.toml").read_text()
        assert "# who does what" in text
        assert "# the model in use" in text
        assert (await daemon.ask("go"))["text"] == "two"
        code, _, err = await cli(home, "agents", "set-model", "assistant", "nine")
        assert code == 2


async def test_sighup_reads_the_file_again(tmp_path: Path) -> None:
    home = write(tmp_path)
    (home / "config.toml").write_text("[daemon]\nwatch_config = false\n" + CONFIG)
    async with running(home) as daemon:
        revision = (await daemon.get("/api/config"))["revision"]
        text = "[daemon]\nwatch_config = false\n" + CONFIG.replace('["one"]', '["two"]')
        (home / "config.toml").write_text(text)
        os.kill(daemon.process.pid, signal.SIGHUP)
        await until_revision_changes(daemon, revision)
        assert (await daemon.ask("go"))["text"] == "two"


async def test_an_invalid_file_at_the_start_ends_it_with_code_2(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[daemon]\nlog_levle = "info"\n')
    code, _, err = await cli(tmp_path, "serve")
    assert code == 2
    assert "config.toml:2: daemon.log_levle" in err
    assert "log_level" in err
