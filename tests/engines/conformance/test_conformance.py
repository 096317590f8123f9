"""What every engine keeps of `engines.base.Engine`, whatever runs the model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from appliance.clock import new_id
from appliance.engines.base import Engine, InstanceState
from appliance.engines.llamacpp.engine import LlamaCppEngine
from appliance.engines.llamacpp.params import LlamaCppParams
from appliance.engines.scripted import ScriptedEngine
from appliance.errors import PromptTooLong
from appliance.types import (
    Completion,
    GenerateRequest,
    Role,
    Sampling,
    StopReason,
    TextDelta,
    text_message,
)
from tests.engines.remote.rig import remote_engine
from tests.engines.vllm.rig import real_engine, stand_in_engine, write_folder
from tests.fakes.openai.running import stand_in


def ask(text: str, max_tokens: int = 8) -> GenerateRequest:
    messages = (text_message(Role.USER, text),)
    return GenerateRequest(new_id("req"), messages, sampling=Sampling(max_tokens=max_tokens))


@pytest.fixture(
    params=[
        "scripted",
        "remote",
        "vllm-stand-in",
        pytest.param("llamacpp", marks=pytest.mark.model),
        pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.model]),
    ]
)
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Engine]:
    if request.param == "scripted":
        script = tmp_path / "script.json"
        script.write_text(json.dumps([{"reply": "one two three four five six " * 9}]))
        async with ScriptedEngine(script, context_window=512, slots=2) as scripted:
            yield scripted
    elif request.param == "remote":
        with stand_in("--slots", "2") as url:
            async with remote_engine(url, slots=2) as remote:
                yield remote
    elif request.param == "vllm-stand-in":
        async with stand_in_engine(write_folder(tmp_path / "model"), "slow") as stood_in:
            yield stood_in
    elif request.param == "vllm":
        async with real_engine(request.getfixturevalue("vllm_folder")) as real:
            yield real
    else:
        path: Path = request.getfixturevalue("default_model_path")
        params = LlamaCppParams(path, context_window=512, slots=2)
        async with LlamaCppEngine(params) as local:
            yield local


async def test_deltas_join_to_the_one_completion(engine: Engine) -> None:
    assert engine.state is InstanceState.READY
    items = [item async for item in engine.generate(ask("Count: one two three four five six"))]
    (completion,) = [item for item in items if isinstance(item, Completion)]
    assert items[-1] is completion
    shown = "".join(item.text for item in items if isinstance(item, TextDelta))
    assert shown == completion.message.text != ""
    usage = completion.usage
    assert 0 < usage.output_tokens <= 8 and 0 <= usage.cached_tokens <= usage.prompt_tokens > 0


async def test_the_limit_of_tokens_is_kept_and_named(engine: Engine) -> None:
    *_, last = [item async for item in engine.generate(ask("one two three four", 2))]
    assert isinstance(last, Completion)
    assert (last.usage.output_tokens, last.stop_reason) == (2, StopReason.MAX_TOKENS)


async def test_a_prompt_too_long_says_so(engine: Engine) -> None:
    with pytest.raises(PromptTooLong):
        _ = [item async for item in engine.generate(ask("word " * 9_000))]


async def test_closed_streams_free_their_slots_and_more_than_slots_all_end(engine: Engine) -> None:
    for _ in range(engine.facts.slots + 1):
        async with aclosing(engine.generate(ask("one two three four", 64))) as stream:  # type: ignore[type-var]
            async for item in stream:
                if isinstance(item, TextDelta):
                    break

    async def whole() -> Completion:
        *_, last = [item async for item in engine.generate(ask("one two three four", 4))]
        assert isinstance(last, Completion)
        return last

    async with asyncio.timeout(30):
        answers = await asyncio.gather(*(whole() for _ in range(engine.facts.slots * 3)))
    assert all(answer.usage.output_tokens > 0 for answer in answers)
