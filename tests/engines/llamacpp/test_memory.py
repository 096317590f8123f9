"""Shared beginnings, parking and adapters, over memories that can be cut and that cannot."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.engines.llamacpp import parked_file
from appliance.engines.llamacpp.engine import LlamaCppEngine
from appliance.engines.llamacpp.params import LlamaCppParams
from appliance.engines.llamacpp.said import MAX_TOKENS_KEPT, Said
from appliance.types import (
    Completion,
    GenerateRequest,
    Message,
    Priority,
    Role,
    StopReason,
    TextBlock,
    text_message,
)

from . import tiny_models
from .conftest import ask, run

pytestmark = pytest.mark.model

SYSTEM = "Rules of the house, which every agent gets: " + " ".join(
    f"({n}) mind item {n}." for n in range(12)
)
MAKERS: dict[str, Callable[[Path], Path]] = {
    "attention": tiny_models.llama,
    "sliding window": tiny_models.gemma2,
    "recurrent": tiny_models.mamba,
}


@pytest.fixture(params=list(MAKERS))
def any_memory(request: pytest.FixtureRequest, tmp_path: Path) -> LlamaCppParams:
    pytest.importorskip("llama_cpp")
    path = MAKERS[request.param](tmp_path / "tiny.gguf")
    return LlamaCppParams(path, context_window=1024, slots=2, park_dir=tmp_path / "parked")


@pytest.fixture
def tiny(tmp_path: Path) -> LlamaCppParams:
    pytest.importorskip("llama_cpp")
    path = tiny_models.llama(tmp_path / "tiny.gguf")
    return LlamaCppParams(path, context_window=1024, slots=2, park_dir=tmp_path / "parked")


def turn(*texts: str, max_tokens: int = 12, **fields: object) -> GenerateRequest:
    """A conversation: system prompt, then user and assistant by turns. Random weights would say
    half characters; only printable ones may be drawn, so that an answer is its own text again."""
    fields.setdefault("logit_bias", dict.fromkeys(tiny_models.unprintable(), -1000.0))
    roles = [Role.USER, Role.ASSISTANT]
    messages: tuple[Message, ...] = (text_message(Role.SYSTEM, SYSTEM),)
    messages += tuple(text_message(roles[n % 2], text) for n, text in enumerate(texts))
    return dataclasses.replace(ask("", max_tokens=max_tokens, **fields), messages=messages)


async def answer(engine: LlamaCppEngine, request: GenerateRequest) -> Completion:
    return (await run(engine, request))[1]


async def alone(params: LlamaCppParams, request: GenerateRequest) -> Completion:
    """The same question to a worker that keeps nothing."""
    fresh = dataclasses.replace(params, park_dir=None, park_ram_bytes=0)
    async with LlamaCppEngine(fresh) as engine:
        return await answer(engine, request)


async def test_a_second_agent_does_not_prefill_the_system_prompt_again(
    any_memory: LlamaCppParams,
) -> None:
    async with LlamaCppEngine(any_memory) as engine:
        first = await answer(engine, turn("one", cache_key="a"))
        second = await answer(engine, turn("two", cache_key="b"))
    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens > len(SYSTEM) * 0.9
    assert second.message == (await alone(any_memory, turn("two"))).message


async def test_the_next_turn_continues_where_the_last_one_ended(
    any_memory: LlamaCppParams,
) -> None:
    async with LlamaCppEngine(any_memory) as engine:
        first = await answer(engine, turn("one", cache_key="a"))
        follow = turn("one", first.message.text, "and then?", cache_key="a")
        second = await answer(engine, follow)
    assert second.usage.cached_tokens >= first.usage.prompt_tokens - 1
    assert second.message == (await alone(any_memory, follow)).message


async def test_a_conversation_comes_back_after_its_model_was_unloaded(
    any_memory: LlamaCppParams,
) -> None:
    async with LlamaCppEngine(any_memory) as engine:
        first = await answer(engine, turn("one", cache_key="a"))
    follow = turn("one", first.message.text, "and then?", cache_key="a")
    async with LlamaCppEngine(any_memory) as engine:
        second = await answer(engine, follow)
    assert second.usage.cached_tokens >= first.usage.prompt_tokens - 1
    assert second.message == (await alone(any_memory, follow)).message


async def test_a_damaged_parked_file_is_refused_and_recomputed(
    any_memory: LlamaCppParams,
) -> None:
    async with LlamaCppEngine(any_memory) as engine:
        first = await answer(engine, turn("one"))
    assert any_memory.park_dir is not None
    files = list(any_memory.park_dir.rglob("*.kv"))
    assert files
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o600
        data = bytearray(path.read_bytes())
        data[-200] ^= 1
        path.write_bytes(data)
    async with LlamaCppEngine(any_memory) as engine:
        second = await answer(engine, turn("one"))
        assert engine.state.value == "ready"
    assert second.usage.cached_tokens == 0
    assert second.message == first.message


async def test_a_parked_file_of_another_model_is_not_used(
    tiny: LlamaCppParams, tmp_path: Path
) -> None:
    async with LlamaCppEngine(tiny) as engine:
        await answer(engine, turn("one"))
    other = tiny_models.llama(tmp_path / "other.gguf", seed=9)
    async with LlamaCppEngine(dataclasses.replace(tiny, model_path=other)) as engine:
        second = await answer(engine, turn("one"))
    assert second.usage.cached_tokens == 0


async def test_agents_arriving_together_prefill_their_system_prompt_once(
    tiny: LlamaCppParams,
) -> None:
    wide = dataclasses.replace(tiny, slots=8, kv_tokens=2048)
    async with LlamaCppEngine(wide) as engine:
        answers = await asyncio.gather(
            *(answer(engine, turn(f"agent {n}", cache_key=str(n))) for n in range(8))
        )
    fresh = sum(a.usage.prompt_tokens - a.usage.cached_tokens for a in answers)
    longest = max(a.usage.prompt_tokens for a in answers)
    assert fresh < longest + 8 * 40


async def test_one_slot_serves_two_conversations_from_ram(tiny: LlamaCppParams) -> None:
    single = dataclasses.replace(tiny, slots=1, kv_tokens=1024, park_dir=None)
    async with LlamaCppEngine(single) as engine:
        a = await answer(engine, turn("I am the first", cache_key="a"))
        await answer(engine, dataclasses.replace(ask("x " * 350, max_tokens=4), cache_key="b"))
        again = await answer(engine, turn("I am the first", a.message.text, "go on"))
    assert again.usage.cached_tokens >= a.usage.prompt_tokens - 1


async def test_a_full_cache_sets_a_background_answer_back_and_both_finish(
    tiny: LlamaCppParams,
) -> None:
    tight = dataclasses.replace(tiny, context_window=512, kv_tokens=512, slots=2)
    text = "y" * 200
    async with LlamaCppEngine(tight) as engine:
        background = dataclasses.replace(ask(text, max_tokens=150), priority=Priority.BACKGROUND)
        urgent = dataclasses.replace(
            ask(text[::-1] + "z", max_tokens=150), priority=Priority.INTERACTIVE
        )
        both = await asyncio.gather(answer(engine, background), answer(engine, urgent))
    assert [c.usage.output_tokens for c in both] == [150, 150]
    assert [c.stop_reason for c in both] == [StopReason.MAX_TOKENS] * 2


async def test_an_adapter_changes_its_own_answers_only(
    tiny: LlamaCppParams, tmp_path: Path
) -> None:
    adapted = dataclasses.replace(
        tiny, adapters={"pirate": tiny_models.lora(tmp_path / "lora.gguf")}
    )
    async with LlamaCppEngine(adapted) as engine:
        plain = await answer(engine, turn("one"))
        changed, beside = await asyncio.gather(
            answer(engine, turn("one", adapter="pirate")), answer(engine, turn("one"))
        )
        assert changed.usage.cached_tokens == 0
        again = await answer(engine, turn("one", adapter="pirate"))
    assert changed.message != plain.message
    assert beside.message == plain.message
    assert again.message == changed.message
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 1


async def test_half_a_character_at_the_end_of_an_answer_is_replaced(
    tiny: LlamaCppParams,
) -> None:
    async with LlamaCppEngine(tiny) as engine:
        # Byte tokens start at id 3; 0xF0 opens a character of four bytes.
        forced = ask("x", max_tokens=2, logit_bias={3 + 0xF0: 1000.0})
        completion = await answer(engine, forced)
    (block,) = completion.message.blocks
    assert isinstance(block, TextBlock)
    assert set(block.text) == {"�"}


def test_what_the_model_said_is_found_until_too_much_was_said() -> None:
    said = Said()
    said.remember("hello", [1, 2])
    said.remember("hello", [3])
    assert said.tokens_of("hello") == (3,)
    assert said.tokens_of("hell") is None
    said.remember("long", range(MAX_TOKENS_KEPT))
    assert said.tokens_of("hello") is None
    assert said.tokens_of("long") is not None


async def test_embeddings_are_unit_vectors_in_order(tiny: LlamaCppParams) -> None:
    params = dataclasses.replace(tiny, embeddings=True, context_window=256, slots=4)
    texts = [f"text number {n}" for n in range(11)] + [""]
    async with LlamaCppEngine(params) as engine:
        assert engine.facts.supports_embeddings
        together = await engine.embed(texts)
        singly = [(await engine.embed([text]))[0] for text in texts]
    for vector, single in zip(together, singly, strict=True):
        assert sum(x * x for x in vector) == pytest.approx(1, abs=1e-5)
        assert vector == pytest.approx(single, abs=1e-3)


def test_what_a_killed_writer_left_half_written_is_swept_away(tmp_path: Path) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    left = tmp_path / f"abc.{gone.stdout.strip()}.part"
    ours = tmp_path / f"abc.{os.getpid()}.part"
    for path in (left, ours):
        path.write_bytes(b"half")
    parked_file.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [ours]
