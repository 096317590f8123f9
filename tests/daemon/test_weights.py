"""Files of models that come, grow, change and go while a daemon runs."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from appliance.daemon.weights import Weights
from tests.daemons import cli, running, write_home


def put(path: Path, text: str, age_s: int) -> None:
    path.write_text(text)
    os.utime(path, (age_s, age_s))


def test_a_change_counts_once_it_has_come_to_rest(tmp_path: Path) -> None:
    files = (tmp_path / "a.gguf", tmp_path / "lora.gguf")
    weights = Weights(lambda: {"a": files})
    assert weights.adopt() == {"a": ""}
    put(files[0], "part", 1)
    assert not weights.look(), "one file of two"
    put(files[1], "lora", 1)
    assert not weights.look(), "just come"
    put(files[0], "part and more", 2)
    assert not weights.look(), "still growing"
    assert weights.look()
    whole = weights.adopt()["a"]
    assert not weights.look()
    files[0].unlink()
    assert not weights.look() and not weights.look()
    assert weights.adopt()["a"] == whole, "gone is no change"
    put(files[0], "another", 3)
    assert not weights.look()
    assert weights.look()
    assert weights.adopt()["a"] != whole


def test_files_named_by_a_new_configuration_are_taken_as_they_are(tmp_path: Path) -> None:
    models = {"a": (tmp_path / "a.gguf",)}
    put(tmp_path / "a.gguf", "a", 1)
    put(tmp_path / "b.gguf", "b", 1)
    weights = Weights(lambda: models)
    before = weights.adopt()["a"]
    models["a"] = (tmp_path / "b.gguf",)
    assert weights.adopt()["a"] not in ("", before)
    assert not weights.look() and not weights.look()


@pytest.mark.model
async def test_a_model_refused_for_its_missing_file_serves_once_the_file_is_there(
    tmp_path: Path, default_model_path: Path
) -> None:
    config = """
[models.small]
engine = "llamacpp"
file = "later.gguf"
context_window = 512
slots = 1

[agents.assistant]
models = ["small"]
policy = "local-only"
"""
    home = write_home(tmp_path, [], config)
    async with running(home) as daemon:
        code, _, err = await cli(home, "ask", "assistant", "hello")
        assert code == 1 and "does not exist" in err, err
        (home / "models").mkdir(exist_ok=True)
        shutil.copy(default_model_path, home / "models" / "later.gguf")
        async with asyncio.timeout(60):
            while (await daemon.ask("hello"))["type"] != "turn.completed":
                await asyncio.sleep(0.2)
        (model,) = (await daemon.get("/api/models"))["models"]
        assert model["state"] == "ready"
        assert sum(model["bytes_by_device"].values()) > default_model_path.stat().st_size / 2
