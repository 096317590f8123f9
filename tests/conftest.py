"""What every room's tests share: the default model, and which marks run by default."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
DEFAULT_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests that take minutes")
    parser.addoption("--vllm", action="store_true", help="also run tests against a real vLLM")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for mark in ("slow", "vllm"):
        if not config.getoption(f"--{mark}"):
            skip = pytest.mark.skip(reason=f"runs with --{mark}")
            for item in items:
                if item.get_closest_marker(mark):
                    item.add_marker(skip)


@pytest.fixture(scope="session")
def vllm_folder() -> Path:
    """The default model as a Hugging Face folder, as `scripts/vllm-env` makes it."""
    folder = REPOSITORY / ".venv-vllm" / "models" / "SmolLM2-135M-Instruct"
    if not (folder / "config.json").is_file():
        pytest.skip(f"no model at {folder}; scripts/vllm-env makes it")
    return folder


@pytest.fixture(scope="session")
def default_model_path() -> Path:
    """The default model's file: `$APPLIANCE_TEST_MODEL`, or as the quickstart fetches it."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    named = os.environ.get("APPLIANCE_TEST_MODEL")
    path = Path(named) if named else REPOSITORY / ".appliance" / "models" / DEFAULT_MODEL
    if not path.is_file():
        pytest.skip(f"the default model is not at {path}; ./scripts/quickstart.sh fetches it")
    return path
