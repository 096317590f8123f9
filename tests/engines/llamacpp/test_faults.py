"""A worker that dies, hangs or never was: noticed, named, contained."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from appliance.engines.base import InstanceState
from appliance.engines.llamacpp.engine import LlamaCppEngine
from appliance.engines.llamacpp.frames import FrameDecoder, FrameError, encode
from appliance.engines.llamacpp.params import LlamaCppParams
from appliance.errors import (
    ApplianceError,
    BadRequest,
    EngineError,
    EngineTimeout,
    ModelBroken,
    NoCapacity,
)
from appliance.types import TextDelta, ToolChoice, ToolChoiceKind, ToolSpec

from . import tiny_models
from .conftest import ask, run

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LlamaCppParams:
    pytest.importorskip("llama_cpp")
    path = tiny_models.llama(tmp_path_factory.mktemp("models") / "tiny.gguf")
    # Long enough a window that no answer ends before its worker is hit.
    return LlamaCppParams(path, context_window=16_384, slots=1, stall_timeout_s=1.0)


async def killed_mid_stream(engine: LlamaCppEngine, number: signal.Signals) -> EngineError:
    """Signal the worker after the first delta; the error the stream ends with."""
    assert engine.pid is not None
    endless = dict.fromkeys(tiny_models.unprintable(), -1000.0)
    signalled = False
    try:
        async for delta in engine.generate(ask("Hello", max_tokens=16_000, logit_bias=endless)):
            if isinstance(delta, TextDelta) and not signalled:
                signalled = True
                os.kill(engine.pid, number)
    except EngineError as error:
        return error
    raise AssertionError("the stream outlived its worker")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_killed_worker_ends_its_streams_and_is_reported(
    tiny: LlamaCppParams, number: signal.Signals
) -> None:
    async with LlamaCppEngine(dataclasses.replace(tiny, stall_timeout_s=30)) as engine:
        error = await killed_mid_stream(engine, number)
        assert f"signal {int(number)}" in error.message
        assert "log_tail" in error.details
        reason = await asyncio.wait_for(engine.wait_failed(), 60)
        assert f"signal {int(number)}" in reason
        assert engine.state is InstanceState.FAILED
        with pytest.raises(EngineError, match="failed, not ready"):
            await run(engine, ask("Hello"))


async def test_a_stopped_worker_is_killed_and_reported(tiny: LlamaCppParams) -> None:
    async with LlamaCppEngine(tiny) as engine:
        pid = engine.pid
        error = await killed_mid_stream(engine, signal.SIGSTOP)
        assert "no progress" in error.message
        assert "no progress" in await asyncio.wait_for(engine.wait_failed(), 60)
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "strin"},
        {"type": "string", "pattern": "("},
        {"$ref": "#/$defs/nowhere"},
        {"$ref": "#/properties/x"},
        {"type": "object", "properties": []},
    ],
    ids=json.dumps,
)
async def test_a_tool_whose_schema_is_none_fails_alone(
    tiny: LlamaCppParams, part: dict[str, object]
) -> None:
    tool = ToolSpec("act", "", {"type": "object", "properties": {"x": part}, "required": ["x"]})
    demanded = ToolChoice(ToolChoiceKind.ANY, parallel=False)
    async with LlamaCppEngine(dataclasses.replace(tiny, slots=2, stall_timeout_s=30)) as engine:
        beside = asyncio.create_task(run(engine, ask("Hello", max_tokens=60, seed=1)))
        asked = ask("Act.", max_tokens=90, temperature=1.0, tools=(tool,), tool_choice=demanded)
        with contextlib.suppress(EngineError, BadRequest):
            await run(engine, asked)
        _, done = await beside
        assert done.usage.output_tokens
        assert engine.state is InstanceState.READY


async def test_a_worker_that_is_never_ready_times_out(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    sleeper = tmp_path / "python"
    sleeper.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'import time; time.sleep(60)'\n")
    sleeper.chmod(0o755)
    params = LlamaCppParams(model, python=str(sleeper), start_timeout_s=0.3)
    with pytest.raises(EngineTimeout, match=r"not ready after 0\.3 s"):
        await LlamaCppEngine(params).__aenter__()


@pytest.mark.parametrize(
    ("promised", "ends", "expected"),
    [
        ((), "kill -9 $$", EngineError),
        ((), "kill -6 $$", ModelBroken),
        ((1 << 30,), "kill -6 $$", NoCapacity),
        ((1 << 30,), "exit 1", NoCapacity),
    ],
)
async def test_a_worker_out_of_memory_at_load_says_what_it_said_last(
    tmp_path: Path, promised: tuple[int, ...], ends: str, expected: type[ApplianceError]
) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    dying = tmp_path / "python"
    dying.write_text(f"#!/bin/sh\necho 'ggml_backend_cuda: out of memory' >&2\n{ends}\n")
    dying.chmod(0o755)
    params = LlamaCppParams(model, python=str(dying), promised_bytes=promised)
    with pytest.raises(ApplianceError, match="could not be loaded") as caught:
        await LlamaCppEngine(params).__aenter__()
    assert type(caught.value) is expected
    assert "out of memory" in caught.value.details["log_tail"]


async def test_a_worker_dies_with_its_parent(tiny: LlamaCppParams, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from appliance.engines.llamacpp.engine import LlamaCppEngine\n"
        "from appliance.engines.llamacpp.params import LlamaCppParams\n"
        "async def main():\n"
        "    async with LlamaCppEngine(LlamaCppParams(Path(sys.argv[1]))) as engine:\n"
        "        print(engine.pid, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        str(tiny.model_path),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    watch = os.pidfd_open(pid)
    parent.kill()
    await parent.wait()
    gone = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_reader(watch, lambda: gone.done() or gone.set_result(None))
    try:
        await asyncio.wait_for(gone, 40)
    finally:
        asyncio.get_running_loop().remove_reader(watch)
        os.close(watch)


def test_frames_survive_any_cut_and_refuse_nonsense() -> None:
    sent = [{"type": "a", "text": "é🙂"}, {"type": "b", "n": [1, 2]}]
    data = b"".join(encode(frame) for frame in sent)
    for size in (1, 3, 7, len(data)):
        decoder, seen = FrameDecoder(), []
        for at in range(0, len(data), size):
            seen += decoder.feed(data[at : at + size])
        assert seen == sent
    for nonsense in (b"\xff\xff\xff\xff", b"\x00\x00\x00\x02[]", b"\x00\x00\x00\x01{"):
        with pytest.raises(FrameError):
            FrameDecoder().feed(nonsense)
