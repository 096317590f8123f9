"""The llama.cpp engine measured: throughput beside llama-server, shared prefixes, parking, calls.

    python scripts/bench/engine.py [--llama-server PATH] [--direct] [--only NAME[,NAME…]] [--json]

Throughput is of whole turns through a daemon of its own, everything else (and, with `--direct`,
throughput too) of the engine itself. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from appliance.engines.llamacpp.engine import LlamaCppEngine
from appliance.engines.llamacpp.params import LlamaCppParams
from scripts.bench.engine_lib import measures
from scripts.bench.engine_lib.daemon import bench_daemon
from scripts.bench.engine_lib.targets import Direct, Target, llama_server

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_MODEL = ROOT / ".appliance" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
PARTS = ("throughput", "prefix", "park", "tools", "constraint", "workers")


def main() -> int:
    options = _options()
    figures = asyncio.run(_measure(options))
    summary = {
        **{name: round(value, 4) for name, value in figures.items()},
        "command": " ".join(["python", "scripts/bench/engine.py", *sys.argv[1:]]),
        "versions": _versions(),
        "load_average": os.getloadavg()[0],
    }
    if not options.json:
        for name, value in figures.items():
            print(f"{name:44} {value:10.3f}")
    print(json.dumps(summary))
    return 0


async def _measure(options: argparse.Namespace) -> dict[str, float]:
    params = LlamaCppParams(
        options.model,
        context_window=options.window,
        slots=16,
        kv_tokens=16 * options.window,
        threads=options.threads,
        stall_timeout_s=300,
        park_ram_bytes=0,
    )
    figures: dict[str, float] = {}

    async def part(name: str, work: object) -> None:
        began = time.monotonic()
        figures.update(await work)  # type: ignore[misc]
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    if "throughput" in options.only:
        await part("throughput", _throughput(params, options))
    if "prefix" in options.only:
        tokens = options.prefix_tokens
        wide = LlamaCppParams(
            options.model,
            context_window=tokens + 512,
            slots=options.agents,
            kv_tokens=(options.agents + 2) * (tokens + 512),
            threads=options.threads,
            stall_timeout_s=300,
            park_ram_bytes=0,
        )
        async with LlamaCppEngine(wide) as engine:
            prefix = measures.shared_prefix(
                Direct(engine),
                agents=options.agents,
                prefix_tokens=tokens,
                apart_agents=options.apart_agents or options.agents,
            )
            await part("prefix", prefix)
    if "park" in options.only:
        await part("park", measures.park_resume(params, prefix_tokens=options.window // 3))
    async with AsyncExitStack() as stack:
        if {"tools", "constraint"} & set(options.only):
            engine = await stack.enter_async_context(LlamaCppEngine(params))
        if "tools" in options.only:
            await part("tools", measures.tool_calls(engine, options.tool_calls, seed=options.seed))
        if "constraint" in options.only:
            overhead = measures.constraint_overhead(
                engine, rounds=options.rounds, tokens=options.tokens
            )
            await part("constraint", overhead)
    if "workers" in options.only:
        await part(
            "workers", measures.workers(params, rounds=options.rounds, tokens=options.tokens)
        )
    return figures


async def _throughput(params: LlamaCppParams, options: argparse.Namespace) -> dict[str, float]:
    streams = options.streams
    size = {"slots": params.slots, "window": params.context_window, "threads": options.threads}
    async with AsyncExitStack() as stack:
        ours: Target
        if options.direct:
            ours = Direct(await stack.enter_async_context(LlamaCppEngine(params)))
        else:
            served = bench_daemon(
                params.model_path, **size, system=measures.STORYTELLER, tokens=options.tokens
            )
            ours = await stack.enter_async_context(served)
        asked = {"tokens": options.tokens, "endless": options.direct}
        await measures.burst(ours, 1, **asked)
        if options.llama_server is None:
            return await measures.own_throughput(ours, streams, **asked)
        peer = llama_server(options.llama_server, params.model_path, **size)
        theirs = await stack.enter_async_context(peer)
        await measures.burst(theirs, 1, **asked)
        return await measures.throughput(ours, theirs, streams, rounds=options.rounds, **asked)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--llama-server", type=Path, help="the program to compare with")
    parser.add_argument("--direct", action="store_true", help="throughput without the daemon")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument(
        "--streams",
        type=lambda text: tuple(map(int, text.split(","))),
        default=(1, 4, 8, 16),
        help="at once; in pieces where the machine is not ours for long",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48, help="per answer")
    parser.add_argument("--window", type=int, default=1024, help="tokens per sequence")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--agents", type=int, default=16)
    parser.add_argument(
        "--apart-agents", type=int, help="measure so many without sharing, extrapolate to all"
    )
    parser.add_argument("--prefix-tokens", type=int, default=2000)
    parser.add_argument("--tool-calls", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the summary alone")
    return parser.parse_args()


def _versions() -> dict[str, str]:
    names = ("llama-cpp-python", "llguidance", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


if __name__ == "__main__":
    sys.exit(main())
