"""A small folder that says it is a model, and engines of it on the stand-in or the real server."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from appliance.clock import SystemClock
from appliance.engines.vllm.engine import VllmEngine
from appliance.engines.vllm.params import VllmParams
from appliance.engines.vllm.starts import StartLocks
from tests.daemons import REPOSITORY

STAND_IN = (sys.executable, "-m", "tests.fakes.vllm.server")
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 1,
    "hidden_size": 8,
    "num_attention_heads": 1,
    "intermediate_size": 16,
    "vocab_size": 16,
}


def write_folder(folder: Path) -> Path:
    """A whole folder in the Hugging Face layout, of one tensor."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    header = json.dumps(
        {"model.layers.0.w": {"dtype": "F16", "shape": [8], "data_offsets": [0, 16]}}
    ).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    added = [{"id": 1, "content": "<|im_start|>", "special": True},
             {"id": 2, "content": "<|im_end|>", "special": True}]  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return folder


def stand_in_engine(
    folder: Path,
    *behaviour: str,
    locks: StartLocks | None = None,
    precheck: Callable[[Path], None] | None = None,
    **keys: object,
) -> VllmEngine:
    extra = ("--behaviour", *behaviour) if behaviour else ()
    params = VllmParams(
        "near",
        folder,
        command=STAND_IN,
        extra_args=extra,
        environment={"PYTHONPATH": str(REPOSITORY)},
        **{"context_window": 4096, "slots": 2, "start_timeout_s": 60.0, **keys},  # type: ignore[arg-type]
    )
    return VllmEngine(params, locks=locks or StartLocks(), clock=SystemClock(), precheck=precheck)


def real_engine(folder: Path, **keys: object) -> VllmEngine:
    """The real server, of the environment that `scripts/vllm-env` makes, on the CPU."""
    python = REPOSITORY / ".venv-vllm" / "bin" / "python"
    params = VllmParams(
        "near",
        folder,
        command=(str(python), "-m", "vllm.entrypoints.openai.api_server"),
        **{"context_window": 2048, "slots": 2, "start_timeout_s": 600.0, **keys},  # type: ignore[arg-type]
    )
    return VllmEngine(params, locks=StartLocks(), clock=SystemClock())
