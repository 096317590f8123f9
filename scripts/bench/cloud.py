"""Claude behind the real daemon: faulted turns, planted canaries, kills with charges in flight.

Three runs against the stand-in Claude of the test suite, each with a daemon of its own:

- faults: `--turns` turns of an agent that may fall back to a local model, `--share` of the cloud
  calls faulted; a turn ends right when its answer is whole, from either side;
- canaries: `--workflows` workflows of private, public and mixed agents with faults, follow-ups and
  fall-backs; the private ones carry canaries, searched for in every byte the stand-in was sent;
- kills: `--kills` times kill -9 with charges in flight, then the ledger against its bill, in sum
  and call by call, and what each turn says it cost against the ledger;
- cap: 200 turns at once under a cap they would pass.

`--json` prints one flat object as the last line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from scripts.bench.report import report  # noqa: E402
from tests.daemons import Daemon, running, start  # noqa: E402
from tests.fakes.claude.canaries import forms  # noqa: E402
from tests.fakes.claude.running import Claude, claude_process, talking_to  # noqa: E402
from tests.fakes.claude.server import END  # noqa: E402
from tests.journeys.cloud import write_cloud_home  # noqa: E402

MIX = [
    "429:0", "529", "500", "502html", "503", "504", "reset_before", "reset_mid:2", "reset_mid:6",
    "eof_mid:0", "eof_mid:6", "overloaded_mid", "error_mid", "malformed", "bad_utf8",
]  # fmt: skip
AT_ONCE = 16
CAP_USD = 0.02
"""Of the run that tries to pass a cap."""


async def faults(
    claude: Claude, folder: Path, turns: int, share: float, seed: int
) -> dict[str, float]:
    await claude.plan(share=share, mix=MIX, seed=seed)
    home = write_cloud_home(folder / "home", claude.url)
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        ended = await _all(daemon, [(f"Question {n}?", "mixed", None) for n in range(turns)])
    texts = [each.get("text", "") for each in ended]
    completed = [each for each in ended if each["type"] == "turn.completed"]
    right = sum(each["text"].endswith(END) for each in completed)
    seen = await claude.seen()
    seen.pop("client_gone", 0)
    faulted = sum(count for step, count in seen.items() if step != "ok")
    assert faulted > 0, "no fault was injected"
    return {
        "turns": turns,
        "ended_right_pct": 100 * right / turns,
        "truncated_shown": len(completed) - right,
        "extra_requests_ratio": sum(seen.values()) / turns,
        "faulted_calls_pct": 100 * faulted / sum(seen.values()),
        "answered_in_cloud_pct": 100 * sum("Reply" in text for text in texts) / turns,
        "rejected_by_validation": len(await claude.violations()),
        "connections_per_100_calls": 100 * await claude.connections() / sum(seen.values()),
    }


async def canaries(claude: Claude, folder: Path, workflows: int) -> dict[str, float]:
    await claude.plan(share=0.2, mix=MIX, seed=2)
    chance = random.Random(3)
    home = write_cloud_home(folder / "home", claude.url)
    planted: list[str] = []
    public: list[str] = []
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        gate = asyncio.Semaphore(AT_ONCE)

        async def workflow(number: int) -> None:
            """One to three turns of a session; a private one holds a canary in each."""
            async with gate:
                is_private = chance.random() < 0.5
                agent = "secret" if is_private else chance.choice(["mixed", "cloud"])
                session = None
                for step in range(chance.randint(1, 3)):
                    word = f"{'CANARY' if is_private else 'PUBLIC'}-{chance.randrange(16**12):012x}"
                    (planted if is_private else public).append(word)
                    turn = await daemon.start_turn(
                        f"Step {step} of {number}: remember {word}.", agent,
                        **({"session": session} if session else {}),
                    )  # fmt: skip
                    session = (await daemon.ended(turn))["session"]

        await asyncio.gather(*(workflow(number) for number in range(workflows)))
    log = claude.log.read_bytes()
    return {
        "workflows": workflows,
        "canaries_planted": len(planted),
        "canary_hits": sum(form in log for word in planted for form in forms(word)),
        "public_share_pct": 100 * sum(word.encode() in log for word in public) / len(public),
    }


async def _until_charged(claude: Claude, before: int) -> None:
    """The first call of a daemon imports its client: only the bill says when it has left."""
    async with asyncio.timeout(30):
        while len((await claude.bill())["charges"]) <= before:
            await asyncio.sleep(0.01)


async def kills(claude: Claude, folder: Path, rounds: int, seed: int) -> dict[str, float]:
    """Kill -9 at a random moment of four calls in flight, again and again, over one ledger."""
    chance = random.Random(seed)
    home = write_cloud_home(folder / "home", claude.url)
    await claude.plan(share=0.0, pace_s=0.004)
    in_flight = charged = 0
    for number in range(rounds):
        daemon = await start(home, ANTHROPIC_API_KEY=claude.key)
        try:
            for call in range(4):
                padding = "word " * chance.randrange(400)  # no two calls cost the same
                await daemon.start_turn(f"Kill {number}.{call} {padding}", "cloud")
            if chance.random() < 0.8:  # else perhaps before anything has left
                await _until_charged(claude, charged)
            await asyncio.sleep(chance.uniform(0.0, 0.3))
        finally:
            daemon.kill()
            await daemon.process.wait()
            await daemon.session.close()
        charges = (await claude.bill())["charges"]
        charged = len(charges)
        in_flight += sum(not charge["is_complete"] for charge in charges[-8:])
    await claude.plan(pace_s=0.0)
    turns: list[dict[str, Any]] = []
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        while page := await _page(daemon, turns):
            turns += page
        ended = [await daemon.ended(turn["id"]) for turn in turns]
        budget = await daemon.get("/api/budget")
        while any(row["reserved"] for row in budget["caps"]):
            budget = await daemon.get("/api/budget")
        shown = [(await daemon.get(f"/api/turns/{turn['id']}"))["usage"] for turn in turns]
    charges = (await claude.bill())["charges"]
    bill, ledger = sum(each["micro_usd"] for each in charges), budget["today_micro_usd"]
    settled = _settlements(home)
    sums = Counter[str]()
    for turn_id, micro_usd in settled:
        sums[turn_id] += micro_usd
    assert in_flight > 0, "no charge was in flight at any kill"
    return {
        "kills": rounds,
        "turns_ended_right_pct": 100
        * sum(each.get("text", "").endswith(END) for each in ended)
        / len(ended),
        "killed_in_mid_answer": in_flight,
        "calls": len(charges),
        "calls_cut": sum(not each["is_complete"] for each in charges),
        "calls_settled_wrong": sum(
            (
                Counter(each["micro_usd"] for each in charges)
                - Counter(micro_usd for _, micro_usd in settled)
            ).values()
        ),
        "turns_summed_wrong": sum(
            not sums[turn["id"]] == told["spend_micro_usd"] == end["usage"]["spend_micro_usd"]
            for turn, told, end in zip(turns, shown, ended, strict=True)
        ),
        "asked_again": len(charges) - len(turns),
        "billed_micro_usd": bill,
        "ledger_micro_usd": ledger,
        "budget_error_micro_usd": abs(ledger - bill),
    }


async def _page(daemon: Daemon, so_far: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The next turns, newest first, that are not among those."""
    before = {"before": so_far[-1]["id"]} if so_far else {}
    return list((await daemon.get("/api/turns", limit=1_000, **before))["turns"])


def _settlements(home: Path) -> list[tuple[str, int]]:
    """The turn of each call and what it was settled to, in micro-dollars, as the journal has it."""
    (path,) = (home / "state").glob("*.db")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT body FROM event WHERE kind = 'budget.settled'")
        bodies = [json.loads(body) for (body,) in rows]
        return [(body["turn"], body["micro_usd"]) for body in bodies]


async def cap(claude: Claude, folder: Path) -> dict[str, float]:
    """Two hundred turns at once under a cap that a fifth of them would use up."""
    home = write_cloud_home(folder / "home", claude.url, day_usd=CAP_USD)
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        await _all(daemon, [(f"Ask {n}", "mixed", None) for n in range(200)])
    bill = (await claude.bill())["micro_usd"]
    return {"over_cap_max_micro_usd": max(bill - int(CAP_USD * 1_000_000), 0)}


async def _all(daemon: Daemon, asks: list[tuple[str, str, str | None]]) -> list[dict[str, Any]]:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(text: str, agent: str, session: str | None) -> dict[str, Any]:
        async with gate:
            return await daemon.ask(text, agent, **({"session": session} if session else {}))

    return await asyncio.gather(*(one(*ask) for ask in asks))


async def measure(arguments: argparse.Namespace, url: str, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    wanted = arguments.only.split(",") if arguments.only else ["faults", "canaries", "kills", "cap"]
    for name, run in {
        "faults": lambda c, f: faults(c, f, arguments.turns, arguments.share, arguments.seed),
        "canaries": lambda c, f: canaries(c, f, arguments.workflows),
        "kills": lambda c, f: kills(c, f, arguments.kills, arguments.seed),
        "cap": cap,
    }.items():
        if name not in wanted:
            continue
        started_s = time.monotonic()
        (folder / name).mkdir()
        async with talking_to(url, folder / name / "claude-requests.log") as claude:
            found |= await run(claude, folder / name)
        found[f"{name}_wall_s"] = round(time.monotonic() - started_s, 1)
        print(f"{name}: {found}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=1_000)
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--workflows", type=int, default=300)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", default="", help="of the runs: faults,canaries,kills,cap")
    parser.add_argument("--seed", type=int, default=4, help="of faults and of the moments of kills")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, claude_process(Path(folder) / "claude") as url:
        found = asyncio.run(measure(arguments, url, Path(folder)))
    report(found, as_json=arguments.json)


if __name__ == "__main__":
    main()
