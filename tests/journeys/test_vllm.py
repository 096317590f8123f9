"""A vLLM model through the daemon: placed, started, answering, told of when it dies. The server is
a stand-in that takes vLLM's arguments; against the real one the conformance suite runs (--vllm)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

from tests.daemons import REPOSITORY, cli, running
from tests.engines.vllm.rig import STAND_IN, write_folder
from tests.fakes.vllm.server import started_file

CONFIG = """
[models.near]
engine = "vllm"
folder = "small"
command = {command}
environment = {{ PYTHONPATH = "{repository}" }}
context_window = 2048
slots = 2
extra_args = {extra}

[agents.assistant]
models = ["near"]
policy = "local-only"
"""


def write_vllm_home(home: Path, *extra: str) -> Path:
    (home / "models").mkdir(parents=True)
    write_folder(home / "models" / "small")
    config = CONFIG.format(
        command=json.dumps(STAND_IN), repository=REPOSITORY, extra=json.dumps(extra)
    )
    (home / "config.toml").write_text(config)
    return home


async def test_an_agent_answers_on_it(tmp_path: Path) -> None:
    home = write_vllm_home(tmp_path / "home")
    async with running(home) as daemon:
        checks = {check["name"]: check for check in (await daemon.get("/api/doctor"))["checks"]}
        assert checks["model near"]["ok"], checks
        ended = await daemon.ask("one two three")
        assert ended["type"] == "turn.completed", ended
        assert ended["text"].strip() == "one two three"
        told = json.loads(started_file(home / "models" / "small").read_text())
        assert told["argv"][told["argv"].index("--max-model-len") + 1] == "2048"
        # 2 slots of 2048 tokens and the spare ones, 8 of K and 8 of V, two bytes each
        ordered = int(told["argv"][told["argv"].index("--kv-cache-memory-bytes") + 1])
        assert ordered == (2 * 2048 + 256) * 16 * 2
        (row,) = (await daemon.get("/api/models"))["models"]
        assert row["name"] == "near"


async def test_a_server_that_dies_in_mid_answer_is_started_again(tmp_path: Path) -> None:
    home = write_vllm_home(tmp_path / "home", "--behaviour", "stalls")
    async with running(home) as daemon:
        turn = await daemon.start_turn("word " * 60)
        async with asyncio.timeout(60):
            async for item in daemon.follow(turn):
                if item["type"] == "delta":
                    break
        told = json.loads(started_file(home / "models" / "small").read_text())
        os.kill(told["pid"], signal.SIGKILL)
        ended = await daemon.ended(turn)
        assert ended["type"] == "turn.completed", ended


async def test_a_server_that_cannot_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    home = write_vllm_home(tmp_path / "home", "--behaviour", "dies")
    async with running(home) as daemon:
        code, out, err = await cli(home, "ask", "assistant", "one", "--json")
        assert code == 1, (out, err)
        assert "status 1" in out
        assert "no available memory" in daemon.log
