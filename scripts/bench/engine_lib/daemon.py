"""Our daemon as a target: a home of its own, one model, one agent, asked over the native API.

Every answer is a whole turn: routed, leased, journalled, streamed. The native API takes neither a
token's bias nor a length, so the agent's configuration sets the length, and the questions are ones
that the model has much to say about.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from scripts.bench.engine_lib.targets import Answer
from tests import daemons

_CONFIG = """
[models.bench]
engine = "llamacpp"
file = {file}
context_window = {window}
slots = {slots}
slots_min = {slots}
threads = {threads}
keep_resident = true

[agents.bench]
models = ["bench"]
policy = "local-only"
system_prompt = {system}

[agents.bench.sampling]
temperature = 0.0
max_tokens = {tokens}
"""


class DaemonTarget:
    """One agent of one daemon; `system` and `tokens` are the agent's and must be those asked."""

    def __init__(self, daemon: daemons.Daemon, *, system: str, tokens: int) -> None:
        self._daemon, self._system, self._tokens = daemon, system, tokens

    async def chat(self, system: str, user: str, *, tokens: int, endless: bool) -> Answer:
        assert (system, tokens, endless) == (self._system, self._tokens, False)
        began, first_s, last = time.perf_counter(), 0.0, {}
        turn = await self._daemon.start_turn(user, "bench")
        async for last in self._daemon.follow(turn):
            if last["type"] == "delta":
                first_s = first_s or time.perf_counter() - began
        if last.get("type") != "turn.completed":
            raise RuntimeError(f"the turn ended otherwise: {json.dumps(last)[:500]}")
        used = last["usage"]
        return Answer(
            last["text"],
            used["prompt_tokens"],
            used["cached_tokens"],
            used["output_tokens"],
            first_s,
            time.perf_counter() - began,
        )


@asynccontextmanager
async def bench_daemon(
    model: Path, *, slots: int, window: int, threads: int, system: str, tokens: int
) -> AsyncIterator[DaemonTarget]:
    """A daemon under a fresh home, ended and removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        config = _CONFIG.format(
            file=json.dumps(str(model.resolve())),
            window=window,
            slots=slots,
            threads=threads,
            system=json.dumps(system),
            tokens=tokens,
        )
        (home / "config.toml").write_text(config)
        async with daemons.running(home) as daemon:
            yield DaemonTarget(daemon, system=system, tokens=tokens)
