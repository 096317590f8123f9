"""How fast and how small the daemon starts: alone, and with many long turns to resume.

scripts/bench/start.py                      ready time and memory with no model loaded
scripts/bench/start.py --turns 100 --steps 500    first new event with that many to resume
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from appliance.clock import SystemClock, new_id  # noqa: E402
from appliance.store.database import FILE_NAME, Database  # noqa: E402
from appliance.store.index import SessionRow, TurnRow  # noqa: E402
from appliance.store.journal import Journal  # noqa: E402
from appliance.turns import events as ev  # noqa: E402
from appliance.types import (  # noqa: E402
    Message,
    Role,
    TextBlock,
    ToolCallBlock,
    ToolResultBlock,
    text_message,
)
from appliance.wire.native import block_to_json, message_to_json  # noqa: E402
from scripts.bench.report import report  # noqa: E402
from tests.daemons import SCRIPTED_CONFIG, start, write_home  # noqa: E402

LIMITS = "limits = { steps_max = 10000, output_tokens_max = 1000000 }\n"
"""So that turns of many steps go on instead of ending at their bounds."""

NEW_EVENT_S = 60.0

FORBIDDEN = ("llama_cpp", "torch", "lancedb", "vllm", "langgraph")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--turns", type=int, default=0)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="start-"))
    try:
        write_home(home, [{"reply": "done", "delay_s": 30}], SCRIPTED_CONFIG + LIMITS)
        figures = await measure(home, options)
    finally:
        shutil.rmtree(home)
    report(figures, as_json=options.json)


async def measure(home: Path, options: argparse.Namespace) -> dict[str, Any]:
    if options.turns:
        await write_turns(home / "state", options.turns, options.steps)
    ready_s, cpu_s, rss, loaded = [], [], 0, set()
    first_s: dict[str, list[float]] = {"%": [], "step.routed": []}
    for _ in range(options.runs):
        last = last_seq(home) if options.turns else 0
        began_s = time.monotonic()
        watching = {
            kind: asyncio.create_task(until_new_event(home, last, kind))
            for kind in (first_s if options.turns else ())
        }
        daemon = await start(home)
        ready_s.append(time.monotonic() - began_s)
        cpu_s.append(cpu_seconds(daemon.process.pid))
        for kind, event in watching.items():
            first_s[kind].append(await event - began_s)
        status = await daemon.get("/api/status")
        rss = max(rss, int(status["rss_bytes"]))
        maps = Path(f"/proc/{daemon.process.pid}/maps").read_text()
        loaded |= {name for name in FORBIDDEN if f"/{name}/" in maps}
        daemon.kill()
        await daemon.process.wait()
        await daemon.session.close()
    figures: dict[str, Any] = {
        "ready_s_median": round(statistics.median(ready_s), 3),
        "ready_s_max": round(max(ready_s), 3),
        "cpu_s_at_ready_median": round(statistics.median(cpu_s), 3),
        "rss_mib_no_model": round(rss / (1 << 20), 1),
        "model_libraries_loaded": len(loaded),
    }
    if options.turns:
        figures |= {
            "turns": options.turns,
            "steps": options.steps,
            "first_new_event_s_median": round(statistics.median(first_s["%"]), 3),
            "first_step_routed_s_median": round(statistics.median(first_s["step.routed"]), 3),
        }
    return figures


def last_seq(home: Path) -> int:
    return _rows(home, "SELECT max(seq) FROM event")[0][0]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far: fields 14 and 15 of its stat file."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def until_new_event(home: Path, last: int, kind: str) -> float:
    """The moment the journal has an event after `last` of a kind (an SQL pattern)."""
    query = "SELECT 1 FROM event WHERE seq > ? AND kind LIKE ? LIMIT 1"
    async with asyncio.timeout(NEW_EVENT_S):
        while not _rows(home, query, last, kind):
            await asyncio.sleep(0.01)
    return time.monotonic()


def _rows(home: Path, query: str, *values: object) -> list[tuple[int]]:
    with closing(sqlite3.connect(f"file:{home / 'state' / FILE_NAME}?mode=ro", uri=True)) as reader:
        return reader.execute(query, values).fetchall()


async def write_turns(state: Path, turns: int, steps: int) -> None:
    """Interrupted turns as a busy daemon would leave them: the last step has no answer yet."""
    async with Database(state) as database:
        journal = Journal(database, SystemClock())
        for _ in range(turns):
            await _write_turn(journal, steps)


async def _write_turn(journal: Journal, steps: int) -> None:
    session, turn = new_id("ses"), new_id("turn")
    question = message_to_json(text_message(Role.USER, "go on"))
    accepted = ev.TurnAccepted(agent="assistant", owner_uid=0, message=question)
    drafts = [accepted.draft(session, turn)]
    for step in range(steps):
        call = ToolCallBlock(f"c{step}", "read_file", {"path": f"{step:04d}" + "x" * 900})
        answer = message_to_json(Message(Role.ASSISTANT, (TextBlock("t" * 100), call)))
        result = block_to_json(ToolResultBlock(call.call_id, (TextBlock("r" * 1000),)))
        bodies = (
            ev.StepRouted(step=step, attempt=0, target="main", route={}),
            ev.StepCompleted(step=step, attempt=0, target="main", message=answer,
                             stop_reason="tool_use", usage={}),
            ev.ToolCompleted(step=step, call_id=call.call_id, tool="read_file", result=result),
        )  # fmt: skip
        drafts += [body.draft(session, turn) for body in bodies]
    rows = (
        SessionRow(session, "assistant", 0, "bench", 0, 0, "open"),
        TurnRow(turn, session, "assistant", "running", 0, None, 0, 0),
    )
    await journal.append(*drafts, index=rows, durable=False)


if __name__ == "__main__":
    asyncio.run(main())
