"""On a real card: what NVML shows beside the estimate, and memory that really comes back.

Prints the table that belongs into docs/BENCHMARKS.md (run with -s).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from appliance.engines.llamacpp.engine import LlamaCppEngine
from appliance.engines.llamacpp.params import LlamaCppParams
from appliance.gpu.calibration import Calibration
from appliance.gpu.estimate import estimate
from appliance.gpu.inventory import Prober
from appliance.gpu.oracle import Oracle, question
from appliance.gpu.shape import read_shape
from appliance.gpu.types import MIB, Device, KvType, PlanParams
from appliance.types import Completion, GenerateRequest, Role, Sampling, text_message
from tests.gpu.sketches.catalogue import SKETCHES
from tests.gpu.sparse import write

MODELS = [
    "llama-3.2-1b",
    "qwen2.5-0.5b",
    "qwen3-8b",
    "gemma-3-4b",
    "gpt-oss-20b",
    "deepseek-v2-lite",
    "mamba2-1.3b",
    "lfm2-1.2b",
    "llama-3.1-8b",
]
LOAD_LIMIT_S = 300.0
RETURN_LIMIT_S = 10.0


@asynccontextmanager
async def watched(pid_of: Callable[[], int | None]) -> AsyncIterator[Prober]:
    async with Prober(is_ours=lambda pid: pid == pid_of(), interval_s=0.1) as prober:
        yield prober


async def shown(prober: Prober, uuid: str, holds: Callable[[Device], bool]) -> Device:
    async with asyncio.timeout(RETURN_LIMIT_S):
        async for snapshot in prober.snapshots():
            card = snapshot.device(uuid)
            if card is not None and holds(card):
                return card
    raise AssertionError("snapshots never end")


@pytest.mark.parametrize("kv_type", [KvType.F16, KvType.Q8_0])
@pytest.mark.parametrize("name", MODELS)
async def test_the_estimate_is_what_nvml_shows(name: str, kv_type: KvType, tmp_path: Path) -> None:
    path = write(SKETCHES[name](), tmp_path)
    shape = read_shape(path)
    child_pid: int | None = None
    async with watched(lambda: child_pid) as prober:
        card = max(prober.latest.gpus, key=lambda gpu: gpu.free_bytes)
        plan = PlanParams(
            8192,
            4,
            kv_type=kv_type,
            n_batch=2048,
            gpu_layers=shape.n_layer + 1,
            tensor_split=(1.0,),
            devices=(card.uuid,),
        )
        oracle = Oracle(tmp_path / "cache", library="live", device_kind=card.name)
        predicted = await oracle.estimate(path, shape, plan)
        if predicted.bytes_on(card.uuid) > card.free_bytes:
            pytest.skip(f"{name} does not fit on {card.name}")
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.gpu_live.load_child",
            json.dumps(question(path, plan)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={"CUDA_VISIBLE_DEVICES": card.uuid, "PYTHONPATH": str(Path.cwd())},
            start_new_session=True,
        )
        child_pid = child.pid
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            async with asyncio.timeout(LOAD_LIMIT_S):
                assert await child.stdout.readline() == b"loaded\n"
                child.stdin.write(b"\n")
                assert await child.stdout.readline() == b"worked\n"
            loaded = await shown(prober, card.uuid, lambda gpu: gpu.ours_bytes > 0)
        finally:
            child.kill()
            await child.wait()
        ended = time.monotonic()
        await shown(prober, card.uuid, lambda gpu: gpu.ours_bytes == 0)
        returned_s = time.monotonic() - ended
    seen = loaded.ours_bytes
    known = Calibration().after_load("live", predicted, {card.uuid: seen})
    again = known.corrected("live", estimate(shape, plan, known)).bytes_on(card.uuid)
    buffers = predicted.bytes_on(card.uuid) - Calibration().context_bytes(card.uuid)
    print(
        f"\n{card.name} | {name} | KV {kv_type} | NVML {seen / MIB:.0f} MiB | "
        f"buffers {buffers / MIB:.0f} | context and pool {(seen - buffers) / MIB:.0f} | "
        f"calibrated {again / seen - 1:+.2%} | returned after {returned_s:.2f} s"
    )
    assert seen >= 0.99 * buffers, "the buffers alone must not exceed what is used"
    assert -0.01 <= again / seen - 1 <= 0.03


async def test_an_evicted_model_returns_its_memory_and_resumes_its_conversation(
    default_model_path: Path, tmp_path: Path
) -> None:
    engine: LlamaCppEngine | None = None
    async with watched(lambda: engine.pid if engine is not None else None) as prober:
        card = max(prober.latest.gpus, key=lambda gpu: gpu.free_bytes)
        params = LlamaCppParams(
            default_model_path,
            context_window=4096,
            slots=2,
            gpu_layers=999,
            tensor_split=(1.0,),
            park_dir=tmp_path,
            environment={"CUDA_VISIBLE_DEVICES": card.uuid},
        )
        request = GenerateRequest(
            request_id="r",
            messages=(text_message(Role.USER, "Count from one to twenty. " * 40),),
            sampling=Sampling(max_tokens=8, temperature=0.0),
            cache_key="session",
        )
        answers: list[Completion] = []
        for _ in range(2):
            engine = LlamaCppEngine(params)
            async with engine:
                async for item in engine.generate(request):
                    if isinstance(item, Completion):
                        answers.append(item)
                await shown(prober, card.uuid, lambda gpu: gpu.ours_bytes > 0)
            await shown(prober, card.uuid, lambda gpu: gpu.ours_bytes == 0)
    first, second = answers
    assert second.message.text == first.message.text
    assert second.usage.cached_tokens >= 0.9 * first.usage.prompt_tokens
