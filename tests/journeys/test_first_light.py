"""The main job on the real daemon and the real small model, over the real socket."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.daemons import cli, running

pytestmark = pytest.mark.model


@pytest.fixture
def home(tmp_path: Path, default_model_path: Path) -> Path:
    models = tmp_path / "models"
    models.mkdir()
    (models / default_model_path.name).symlink_to(default_model_path)
    return tmp_path


async def test_an_agent_answers_with_a_real_model_and_says_why(home: Path) -> None:
    async with running(home) as daemon:
        turn = await daemon.start_turn("What is the capital of France?")
        items = [item async for item in daemon.follow(turn)]
        kinds = [item["type"] for item in items]
        assert kinds[0] == "turn.accepted"
        assert kinds[-1] == "turn.completed"
        said = "".join(i["text"] for i in items if i["type"] == "delta" and i["kind"] == "text")
        assert said == items[-1]["text"] != ""
        assert items[-1]["route"]["target"] == "smollm2"
        assert items[-1]["usage"]["output_tokens"] > 0
        explained = await daemon.get(f"/api/turns/{turn}/explain")
        assert any("smollm2 (on this machine)" in line for line in explained["lines"])
        doctor = await daemon.get("/api/doctor")
        assert {check["name"]: check["ok"] for check in doctor["checks"]}["journal"]


async def test_the_command_line_asks_and_prints_one_object_an_event(home: Path) -> None:
    async with running(home):
        code, out, _ = await cli(home, "ask", "assistant", "Say", "hello.", "--json")
        assert code == 0
        events = [json.loads(line) for line in out.splitlines()]
        assert events[-1]["type"] == "turn.completed"
        assert {"turn", "text", "route", "usage"} <= events[-1].keys()
        code, out, _ = await cli(home, "ask", "assistant", "Say hello.")
        assert code == 0
        assert out.strip()


async def test_a_session_remembers_and_a_prompt_beyond_the_window_is_refused(home: Path) -> None:
    async with running(home) as daemon:
        _, session = await daemon.post("/api/sessions", {"agent": "assistant"})
        path = f"/api/sessions/{session['id']}/turns"
        for text in ("My name is Ada.", "What is my name?"):
            _, started = await daemon.post(path, {"text": text})
            assert (await daemon.ended(started["turn"]))["type"] == "turn.completed"
        shown = await daemon.get(f"/api/sessions/{session['id']}")
        assert [m["role"] for m in shown["messages"]] == ["user", "assistant"] * 2
        failed = await daemon.ask("word " * 9000)
        assert failed["type"] == "turn.failed"
        assert failed["error"]["code"] == "prompt_too_long"
        assert "tokens >" in failed["error"]["message"]


async def test_a_missing_and_a_corrupt_model_file_are_named_and_the_daemon_lives(
    home: Path, default_model_path: Path
) -> None:
    (home / "models" / "corrupt.gguf").write_bytes(b"GGUF" + bytes(range(256)) * 40)
    (home / "models" / "text.gguf").write_text("this is not a model")
    models = "".join(
        f'[models.{name}]\nengine = "llamacpp"\nfile = "{name}.gguf"\n\n'
        f'[agents.{name}]\nmodels = ["{name}"]\n\n'
        for name in ("corrupt", "text", "missing")
    )
    good = '[models.good]\nengine = "llamacpp"\nfile = "smollm2-135m-instruct-q4_1"\n' \
           '[agents.assistant]\nmodels = ["good"]\n'  # fmt: skip
    (home / "config.toml").write_text(models + good)
    async with running(home) as daemon:
        for name in ("corrupt", "text", "missing"):
            ended = await daemon.ask("Hello", agent=name)
            assert ended["type"] == "turn.failed"
            assert f"{name}.gguf" in ended["error"]["message"], ended["error"]
        short = {"output_tokens_max": 16}
        assert (await daemon.ask("Hello", limits=short))["type"] == "turn.completed"
