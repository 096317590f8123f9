"""What `engine.py` measures, each a coroutine from targets to figures."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jsonschema

from appliance.engines.llamacpp.engine import LlamaCppEngine
from appliance.engines.llamacpp.params import LlamaCppParams
from appliance.types import (
    Role,
    Sampling,
    ToolChoice,
    ToolChoiceKind,
    ToolSpec,
    text_message,
)
from scripts.bench.engine_lib.targets import END_TOKENS, Direct, Target

Figures = dict[str, float]
ENDLESS = dict.fromkeys(END_TOKENS, -100.0)


STORYTELLER = "You tell long stories."


async def burst(target: Target, streams: int, tokens: int, *, endless: bool = True) -> float:
    """Tokens per second of `streams` answers at once, from asking to the last token. Where an
    answer may end by itself (not `endless`) only what was said is counted."""
    began = time.perf_counter()
    answers = await asyncio.gather(
        *(
            target.chat(
                STORYTELLER, f"Tell a long story about {n} birds.", tokens=tokens, endless=endless
            )
            for n in range(2, streams + 2)
        )
    )
    return sum(a.output_tokens for a in answers) / (time.perf_counter() - began)


async def throughput(
    ours: Target,
    theirs: Target,
    streams: tuple[int, ...],
    *,
    rounds: int,
    tokens: int,
    endless: bool,
) -> Figures:
    """Both in turns; the ratio is the median of the paired ones, and its least and most."""
    figures: Figures = {}
    for count in streams:
        pairs: list[tuple[float, float]] = []
        for turn in range(rounds):
            order = [ours, theirs] if turn % 2 == 0 else [theirs, ours]
            rates = {
                id(target): await burst(target, count, tokens, endless=endless) for target in order
            }
            pairs.append((rates[id(ours)], rates[id(theirs)]))
        ratios = [a / b for a, b in pairs]
        told = " ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"{count} streams, ours by theirs: {told}", file=sys.stderr, flush=True)
        figures[f"throughput_ratio_{count}"] = statistics.median(ratios)
        figures[f"throughput_ratio_{count}_least"] = min(ratios)
        figures[f"throughput_ratio_{count}_most"] = max(ratios)
        figures[f"tokens_per_s_{count}"] = statistics.median(a for a, _ in pairs)
        figures[f"llama_server_tokens_per_s_{count}"] = statistics.median(b for _, b in pairs)
    return figures


async def own_throughput(
    ours: Target, streams: tuple[int, ...], tokens: int, *, endless: bool
) -> Figures:
    """Without a peer to compare with."""
    return {
        f"tokens_per_s_{count}": await burst(ours, count, tokens, endless=endless)
        for count in streams
    }


def rules(count_tokens: int, name: str) -> str:
    """A system prompt of about that many tokens; the name decides its first words."""
    lines = (f"Rule {n} of {name}: always check item {n} twice." for n in range(count_tokens // 14))
    return f"You work for {name}. " + " ".join(lines)


async def shared_prefix(
    ours: Target, *, agents: int, prefix_tokens: int, apart_agents: int
) -> Figures:
    """All agents at once, with one system prompt; then `apart_agents` of them each with its own.

    Prompts without a common beginning are read one after the other at one pace, so with fewer
    apart than shared the time of all is extrapolated in proportion (and the figures say from how
    many): less than it would be, since a larger cache is slower.
    """

    async def last_first_token(names: list[str]) -> tuple[float, list[tuple[int, int]]]:
        answers = await asyncio.gather(
            *(
                ours.chat(rules(prefix_tokens, name), f"I am agent {n}.", tokens=2, endless=True)
                for n, name in enumerate(names)
            )
        )
        return max(a.first_s for a in answers), [
            (a.prompt_tokens, a.cached_tokens) for a in answers
        ]

    shared_s, used = await last_first_token(["the workshop"] * agents)
    measured_s, _ = await last_first_token([f"house {n}" for n in range(apart_agents)])
    apart_s = measured_s * agents / apart_agents
    common = max(cached for _, cached in used)
    prefix_cells = sum(max(0, common - cached) for _, cached in used)
    return {
        "shared_prefix_agents": agents,
        "shared_prefix_tokens": common,
        "shared_prefix_last_first_token_s": shared_s,
        "unshared_prefix_agents_measured": apart_agents,
        "unshared_prefix_last_first_token_s": apart_s,
        "shared_prefix_speedup": apart_s / shared_s,
        "shared_prefix_kv_ratio": prefix_cells / common if common else float(agents),
    }


async def park_resume(params: LlamaCppParams, *, prefix_tokens: int) -> Figures:
    """A conversation, the instance stopped and started, its next turn; and the same unstopped."""
    system = text_message(Role.SYSTEM, rules(prefix_tokens, "the workshop"))
    opening = (system, text_message(Role.USER, "What is the capital of France?"))
    greedy = Sampling(24, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        parking = dataclasses.replace(params, slots=1, park_dir=Path(folder))
        async with LlamaCppEngine(parking) as engine:
            first, said = await Direct(engine).ask(opening, greedy, cache_key="a")
        follow = (*opening, said.message, text_message(Role.USER, "And of Italy?"))
        async with LlamaCppEngine(parking) as engine:
            resumed, _ = await Direct(engine).ask(follow, greedy, cache_key="a")
        fresh = dataclasses.replace(parking, park_dir=None)
        async with LlamaCppEngine(fresh) as engine:
            await Direct(engine).ask(opening, greedy, cache_key="a")
            stayed, _ = await Direct(engine).ask(follow, greedy, cache_key="a")
    known = first.prompt_tokens + first.output_tokens - 1
    return {
        "park_resume_prefix_tokens": known,
        "park_resume_decoded_prefix_tokens": max(0, known - resumed.cached_tokens),
        "park_resume_identical": float(resumed.text == stayed.text),
        "park_resume_first_token_s": resumed.first_s,
        "park_resume_cold_first_token_s": first.first_s,
    }


def random_schema(draw: random.Random, depth: int = 2) -> dict[str, object]:
    """An object schema: strings, enumerations, numbers, booleans, arrays and objects in it."""

    def value(depth: int) -> dict[str, object]:
        kinds = ["string", "enum", "integer", "boolean", "number"]
        kinds += ["array", "object"] if depth > 0 else []
        match draw.choice(kinds):
            case "string":
                return {"type": "string", "maxLength": draw.randint(4, 40)}
            case "enum":
                return {"enum": [f"choice-{n}" for n in range(draw.randint(1, 5))]}
            case "integer":
                return {"type": "integer", "minimum": 0, "maximum": draw.randint(1, 10_000)}
            case "array":
                return {"type": "array", "items": value(depth - 1), "maxItems": draw.randint(1, 4)}
            case "object":
                return random_schema(draw, depth - 1)
            case kind:
                return {"type": kind}

    names = [f"field_{n}" for n in range(draw.randint(1, 4))]
    return {
        "type": "object",
        "properties": {name: value(depth) for name in names},
        "required": draw.sample(names, draw.randint(0, len(names))),
        "additionalProperties": False,
    }


async def tool_calls(engine: LlamaCppEngine, total: int, *, seed: int) -> Figures:
    """Demanded calls of tools with random schemas; valid means jsonschema agrees."""
    draw, direct, streams = random.Random(seed), Direct(engine), asyncio.Semaphore(4)

    async def one(number: int) -> bool:
        tool = ToolSpec("act", "Does what was asked.", random_schema(draw))
        async with streams:
            _, completion = await direct.ask(
                [text_message(Role.USER, f"Please act, with example values, case {number}.")],
                Sampling(400, 1.0, seed=number),
                tools=(tool,),
                tool_choice=ToolChoice(ToolChoiceKind.ANY, parallel=False),
            )
        calls = completion.message.tool_calls
        return bool(calls) and all(_is_valid(call.arguments, tool) for call in calls)

    valid = await asyncio.gather(*(one(n) for n in range(total)))
    return {"tool_calls_valid": sum(valid), "tool_calls_total": total}


def _is_valid(arguments: Mapping[str, object], tool: ToolSpec) -> bool:
    try:
        jsonschema.validate(dict(arguments), dict(tool.input_schema))
    except jsonschema.ValidationError:
        return False
    return True


async def constraint_overhead(engine: LlamaCppEngine, *, rounds: int, tokens: int) -> Figures:
    """The median time from one token to the next at 4 streams, constrained to a schema against
    free, in pairs. (Not time by tokens: forced tokens cost nothing and would flatter.)"""
    schema: dict[str, object] = {
        "type": "object",
        "properties": {"story": {"type": "string", "minLength": 2000}},
        "required": ["story"],
        "additionalProperties": False,
    }
    direct = Direct(engine)

    async def gap_s(constrained: bool) -> float:
        done = await asyncio.gather(
            *(
                direct.ask(
                    [text_message(Role.USER, f"Tell story {n}.")],
                    Sampling(tokens, 0.7, seed=n, logit_bias=ENDLESS),
                    schema=schema if constrained else None,
                )
                for n in range(4)
            )
        )
        return statistics.median(gap for answer, _ in done for gap in answer.gaps_s[16:])

    await gap_s(True)
    ratios = []
    for turn in range(rounds):
        order = [True, False] if turn % 2 == 0 else [False, True]
        times = {constrained: await gap_s(constrained) for constrained in order}
        ratios.append(times[True] / times[False])
    return {"constraint_overhead_pct": 100 * (statistics.median(ratios) - 1)}


async def workers(params: LlamaCppParams, *, rounds: int, tokens: int) -> Figures:
    """One worker alone, two at once, and one beside two busy programs; against OpenMP's default
    wait for one alone. All in turns."""
    default = dataclasses.replace(params, environment={"GOMP_SPINCOUNT": "300000"})
    seen: dict[str, list[float]] = {"two": [], "busy": [], "default": []}
    async with (
        LlamaCppEngine(params) as a,
        LlamaCppEngine(params) as b,
        LlamaCppEngine(default) as c,
    ):
        first, second, spinning = Direct(a), Direct(b), Direct(c)
        for target in (first, second, spinning):
            await burst(target, 4, 4)
        for _ in range(rounds):
            one = await burst(first, 4, tokens)
            seen["default"].append(one / await burst(spinning, 4, tokens))
            both = await asyncio.gather(burst(first, 4, tokens), burst(second, 4, tokens))
            seen["two"].append(sum(both) / one)
            with busy_programs(2):
                seen["busy"].append(await burst(first, 4, tokens) / one)
    return {
        "one_worker_vs_default_wait": statistics.median(seen["default"]),
        "two_workers_vs_one": statistics.median(seen["two"]),
        "beside_busy_vs_idle": statistics.median(seen["busy"]),
    }


@contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """As many programs that each keep a core busy."""
    loop = [sys.executable, "-c", "while True: pass"]
    programs = [subprocess.Popen(loop) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()
