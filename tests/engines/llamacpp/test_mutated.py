"""Mutated model files: each start ends, clearly, and the parent does not notice."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from appliance.engines.llamacpp.engine import LlamaCppEngine
from appliance.engines.llamacpp.params import LlamaCppParams
from appliance.errors import EngineError

from . import tiny_models
from .conftest import ask, run

pytestmark = pytest.mark.model

HEADER_BYTES = 9000
"""Where names, shapes and offsets lie in the tiny model; weights are mutated less often."""


def mutate(data: bytes, draw: random.Random) -> bytes:
    """One to eight damages: bits, lengths, cuts, repeats."""
    damaged = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        at = draw.randrange(4, min(HEADER_BYTES, len(damaged) - 16))
        match draw.choice(["bit", "byte", "long", "huge", "cut", "repeat"]):
            case "bit":
                damaged[at] ^= 1 << draw.randrange(8)
            case "byte":
                damaged[at] = draw.randrange(256)
            case "long":
                damaged[at : at + 8] = struct.pack("<Q", draw.choice([0, 1, 1 << 31, 1 << 62]))
            case "huge":
                damaged[at : at + 4] = b"\xff\xff\xff\x7f"
            case "cut":
                del damaged[draw.randrange(len(damaged) // 2, len(damaged)) :]
            case "repeat":
                damaged[at:at] = damaged[at : at + draw.randrange(1, 64)]
    return bytes(damaged)


async def outcome(path: Path) -> str:
    """`started` or the class of the error; anything else is a failed test."""
    params = LlamaCppParams(
        path, context_window=256, slots=1, start_timeout_s=30, stall_timeout_s=10
    )
    try:
        async with LlamaCppEngine(params) as engine:
            await run(engine, ask("Hello", max_tokens=4))
            return "started"
    except EngineError as error:
        return f"{type(error).__name__}{'' if 'log_tail' in error.details else ' without a log'}"


async def check(tmp_path: Path, seeds: range) -> None:
    whole = tiny_models.llama(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "mutated.gguf"
    seen: dict[str, int] = {}
    for seed in seeds:
        path.write_bytes(mutate(whole, random.Random(seed)))
        print(f"seed {seed}")
        kind = await outcome(path)
        seen[kind] = seen.get(kind, 0) + 1
    print(seen)
    assert seen.get("ModelBroken", 0) > 0
    assert not any("without" in kind for kind in seen)


async def test_a_few_mutated_models_are_refused_or_run(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    await check(tmp_path, range(8))


@pytest.mark.slow
async def test_five_hundred_mutated_models_are_refused_or_run(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    await check(tmp_path, range(1000, 1500))
