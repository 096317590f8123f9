"""Tool calls by random tokens under random schemas: how many are valid, and what the constraint
costs.

    python scripts/bench/toolcalls.py --calls 10000 --vocab VOCAB.gguf [--model MODEL.gguf] [--json]

The sampler knows nothing: every token is drawn at random from the whole vocabulary, and again
under the mask when it is refused. With `--model` a real model also answers, one stream, and the
time spent in the constraint is set against the time of decoding and sampling.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from appliance.engines.chat.constraint import ConstraintFactory
from appliance.engines.chat.template import ChatTemplate
from appliance.engines.chat.turnplan import ChatPlan, plan
from appliance.errors import ApplianceError
from appliance.types import (
    GenerateRequest,
    Role,
    Sampling,
    StopReason,
    ToolChoice,
    ToolChoiceKind,
    ToolSpec,
    text_message,
)
from tests.engines.chat.random_schemas import random_tool_schema
from tests.engines.chat.samplers import answer
from tests.engines.chat.templates import hermes
from tests.engines.chat.vocab import SHARED, RealVocab, real_vocab

MARKS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
TODAY = date(2026, 1, 1)
MAX_TOKENS = (200, 400, 800)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--vocab", type=Path, default=SHARED / "vocab" / "ggml-vocab-qwen2.gguf")
    parser.add_argument("--model", type=Path, help="a GGUF whose vocabulary is byte-level BPE")
    parser.add_argument("--model-calls", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    vocab = real_vocab(options.vocab, MARKS)
    started = time.perf_counter()
    factory = vocab.factory()
    figures: dict[str, Any] = {"factory_ms": round((time.perf_counter() - started) * 1000)}
    figures |= hundred_tools(factory)
    figures |= random_calls(factory, vocab, options.calls, options.seed)
    if options.model is not None:
        figures |= with_model(options.model, options.model_calls, options.seed)
    figures["command"] = "python scripts/bench/toolcalls.py " + " ".join(sys.argv[1:])
    figures["versions"] = {name: version(name) for name in ("llguidance", "jinja2", "jsonschema")}
    figures["load_average"] = os.getloadavg()[0]
    for name, value in figures.items():
        print(f"{name:28} {value}")
    if options.json:
        print(json.dumps(figures))


def demanded(tools: tuple[ToolSpec, ...], template: ChatTemplate, max_tokens: int) -> ChatPlan:
    request = GenerateRequest(
        "bench",
        (text_message(Role.USER, "Call a tool with plausible arguments."),),
        tools,
        tool_choice=ToolChoice(ToolChoiceKind.ANY),
        sampling=Sampling(max_tokens=max_tokens),
    )
    return plan(template, request, today=TODAY)


def hundred_tools(factory: ConstraintFactory) -> dict[str, Any]:
    """From the plan of 100 tools with schemas of 1 KB to the constraint, all caches cold."""
    tools = tuple(
        ToolSpec(
            f"tool_{number}",
            "what it does",
            {
                "type": "object",
                "properties": {
                    f"argument_{number}_{index}": {
                        "type": ("string", "integer", "boolean")[index % 3],
                        "description": "what this argument is for, at some length",
                    }
                    for index in range(9)
                },
                "required": [f"argument_{number}_0"],
            },
        )
        for number in range(100)
    )
    size = sum(len(json.dumps(tool.input_schema)) for tool in tools) / len(tools)
    template = hermes()
    started = time.perf_counter()
    made = demanded(tools, template, 500)
    planned = time.perf_counter()
    assert made.constraint is not None
    factory.compile(made.constraint, max_tokens=500)
    ended = time.perf_counter()
    return {
        "schema_bytes_100_tools": round(size),
        "plan_ms_100_tools": round((planned - started) * 1000, 1),
        "compile_ms_100_tools": round((ended - planned) * 1000, 1),
    }


def random_calls(
    factory: ConstraintFactory, vocab: RealVocab, wanted: int, seed: int
) -> dict[str, Any]:
    template = hermes()
    total = valid = tokens = 0
    mask_us: list[float] = []
    failures: list[str] = []
    started = time.perf_counter()
    while total < wanted:
        rng = random.Random(seed)
        seed += 1
        schema = random_tool_schema(rng)
        max_tokens = rng.choice(MAX_TOKENS)
        made = demanded((ToolSpec("tool_x", "", schema),), template, max_tokens)
        assert made.constraint is not None
        try:
            constraint = factory.compile(made.constraint, max_tokens=max_tokens)
            result = answer(made, vocab, constraint, rng, max_tokens, mask_us)
        except ApplianceError as error:
            total += 1
            failures.append(f"seed {seed - 1}: {error.message[:160]}")
            continue
        tokens += result.tokens
        total += max(1, len(result.message.tool_calls))
        checker = jsonschema.Draft202012Validator(schema)
        valid += sum(checker.is_valid(dict(call.arguments)) for call in result.message.tool_calls)
        if not result.message.tool_calls:
            failures.append(f"seed {seed - 1}: no call in {max_tokens} tokens")
    for failure in failures[:20]:
        print(failure, file=sys.stderr)
    mask_us = sorted(mask_us) or [0.0]
    return {
        "tool_calls_valid": valid,
        "tool_calls_total": total,
        "tokens": tokens,
        "us_per_random_token": round((time.perf_counter() - started) / max(1, tokens) * 1e6),
        "mask_us_p50": round(statistics.median(mask_us), 1),
        "mask_us_p99": round(mask_us[int(len(mask_us) * 0.99)], 1),
    }


def best(logits: Any, mask: Any) -> int:
    allowed = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(logits)].view(bool)
    return int(np.where(allowed, logits, -np.inf).argmax())


def with_model(path: Path, calls: int, seed: int) -> dict[str, Any]:
    """A real model, greedy, one stream: seconds in the constraint against seconds outside it."""
    from llama_cpp import Llama

    vocab = real_vocab(path)
    llama = Llama(str(path), n_ctx=4096, verbose=False, n_threads=os.cpu_count() or 1)
    source = llama.metadata.get("tokenizer.chat_template", "")
    template = ChatTemplate(source, bos_token="", eos_token="<|im_end|>")
    factory = vocab.factory()
    inside = outside = 0.0
    total = valid = tokens = 0
    for number in range(calls):
        rng = random.Random(seed + number)
        schema = random_tool_schema(rng)
        made = demanded((ToolSpec("tool_x", "", schema),), template, 200)
        assert made.constraint is not None
        llama.reset()
        for segment in made.segments:
            llama.eval(
                llama.tokenize(segment.text.encode(), add_bos=False, special=segment.trusted)
            )
        mark = time.perf_counter()
        try:
            constraint = factory.compile(made.constraint, max_tokens=200)
        except ApplianceError:
            continue
        said: list[int] = []
        inside += time.perf_counter() - mark
        while len(said) < 200 and not constraint.is_complete:
            mark = time.perf_counter()
            logits = np.asarray(llama._scores[-1])
            token = int(logits.argmax())
            drawn = time.perf_counter()
            forced = constraint.forced_tokens()
            if forced:
                token = forced[0]
            else:
                token = constraint.settle(token, lambda mask, at=logits: best(at, mask))
            constraint.accept(token)
            asked = time.perf_counter()
            said.append(token)
            llama.eval([token])
            inside += asked - drawn
            outside += drawn - mark + time.perf_counter() - asked
        data = b"".join(vocab.tokens[token] for token in said if token not in vocab.end_ids)
        made.parser.feed(data.decode("utf-8", "replace"))
        total += 1
        tokens += len(said)
        try:
            _, message, _ = made.parser.finish(StopReason.END_TURN)
        except ApplianceError:
            continue
        valid += bool(message.tool_calls)
    return {
        "model_calls_valid": valid,
        "model_calls_total": total,
        "model_tokens": tokens,
        "constraint_us_per_token": round(inside / tokens * 1e6, 1),
        "decode_us_per_token": round(outside / tokens * 1e6, 1),
        "constraint_overhead_pct": round(100 * inside / outside, 2),
    }


if __name__ == "__main__":
    main()
