"""Histories moved between a local model and Claude at random points, under strict validation.

scripts/bench/moves.py --moves 1000 --json

Sessions of an agent with tools. Before every turn chance says whether it is answered here or in the
cloud and whether it orders tool calls; some of the cloud's calls are faulted, think first or call a
tool of their own, so that a turn also changes sides in its middle. The stand-in refuses what the
provider would: calls without results, foreign or doubled ids, signatures it never gave, empty text,
roles out of turn. A move is a step on the other side than the step before it in the session.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from scripts.bench.privacy import AGENTS, SCRIPT, Session, order  # noqa: E402
from scripts.bench.report import report  # noqa: E402
from tests.daemons import Daemon, running  # noqa: E402
from tests.fakes.claude.running import Claude, claude_process, talking_to  # noqa: E402
from tests.journeys.cloud import write_cloud_home  # noqa: E402

MIX = ["529", "reset_before", "reset_mid:6", "eof_mid:4", "overloaded_mid", "thinking", "thinking",
       "call", "half_call", "empty", "max_tokens"]  # fmt: skip
TURNS_A_SESSION = 12
AT_ONCE = 8


async def session(daemon: Daemon, chance: random.Random, number: int) -> int:
    """One session; returns how often it changed sides, within turns too."""
    talk, sides = Session(daemon, "open"), []
    for turn in range(TURNS_A_SESSION):
        text = chance.choice([
            f"Question {number}.{turn}?",
            order("write_file", path=f"{turn}.txt", content=f"line {turn}"),
            order("recall", query="anything"),
            order("ask_agent", agent="vault", prompt="say something"),
            f"A longer question {number}: " + "word " * chance.randint(1, 400),
        ])  # fmt: skip
        policy = chance.choice(["local-only", "cloud-first"])
        ended = await talk.say(text, policy=policy)
        shown = await daemon.get(f"/api/turns/{ended['turn']}")
        sides += [step["target"] for step in shown["steps"]]
    return sum(one != other for one, other in pairwise(sides))


async def measure(claude: Claude, folder: Path, moves_wanted: int, seed: int) -> dict[str, Any]:
    chance = random.Random(seed)
    await claude.plan(share=0.35, mix=MIX, seed=seed)
    agents = AGENTS.replace('label = "private"', 'label = "public"')
    home = write_cloud_home(folder / "home", claude.url, more=agents)
    (home / "script.json").write_text(json.dumps(SCRIPT))
    began_s, moves, sessions = time.monotonic(), 0, 0
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        while moves < moves_wanted:
            counted = await asyncio.gather(
                *(session(daemon, chance, sessions + n) for n in range(AT_ONCE))
            )
            moves += sum(counted)
            sessions += AT_ONCE
            print(f"{moves} moves", file=sys.stderr, flush=True)
        states = [turn["status"] for turn in (await daemon.get("/api/turns", limit=1000))["turns"]]
    violations = await claude.violations()
    for violation in violations[:10]:
        print(violation, file=sys.stderr)
    return {
        "moves": moves,
        "sessions": sessions,
        "rejected_by_validation": len(violations),
        "turns_looked_at": len(states),
        "turns_not_done": sum(state != "done" for state in states),
        "wall_s": round(time.monotonic() - began_s, 1),
    }


async def run(options: argparse.Namespace, url: str, folder: Path) -> dict[str, Any]:
    async with talking_to(url, folder / "claude-requests.log") as claude:
        return await measure(claude, folder, options.moves, options.seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moves", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, claude_process(Path(folder) / "claude") as url:
        found = asyncio.run(run(options, url, Path(folder)))
    report(found, as_json=options.json)


if __name__ == "__main__":
    main()
