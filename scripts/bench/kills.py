"""Kill the daemon again and again while its tools act, and count the effects from outside.

Each turn runs built-in tools whose effects are lines in files that only they write, asks two more
agents (one asks the other), waits for a person once, and outgrows its model's window. Some are
cancelled. The daemon is killed at random moments and restarted; at the end every accepted turn must
have ended well, every acknowledged cancellation must have held, and no effect may be there twice.

    scripts/bench/kills.py --kills 200
    scripts/bench/kills.py --kills 50 --with-runner     also kills the tool runners
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from appliance.store.database import FILE_NAME  # noqa: E402
from scripts.bench.report import report  # noqa: E402
from tests.daemons import Daemon, start  # noqa: E402

CONFIG = """
[models.main]
engine = "scripted"
script = "script.json"
slots = 64
context_window = 7000

[network]
allowed_hosts = ["127.0.0.1:PORT"]

[tools]
fetch_enabled = true

[agents.worker]
models = ["main"]
policy = "local-only"
tools = ["read_file", "write_file", "edit_file", "list_files", "search_files", "shell", "fetch",
         "ask_agent", "remember", "recall"]
delegates_to = ["helper"]
approvals = [
    { tool = "shell", arguments = { command = "echo asked *" }, decision = "ask" },
    { tool = "*", decision = "allow" },
]

[agents.helper]
models = ["main"]
policy = "local-only"
tools = ["shell", "ask_agent"]
delegates_to = ["expert"]
approvals = [{ tool = "*", decision = "allow" }]

[agents.expert]
models = ["main"]
policy = "local-only"
tools = ["shell"]
approvals = [{ tool = "*", decision = "allow" }]
"""

CANCELLED_SHARE = 0.15

TURNS_AT_ONCE = 2
UP_S_MAX = 1.0
"""The daemon lives at most this long between two kills, counted from when it answers."""
RUNNER_WAIT_S = 5.0
"""How long a runner is waited for where it is to die too: a busy machine starts one late."""

UNFINISHED = {"queued", "running", "waiting_approval"}
PADDING = r"head -c 12000 /dev/zero | tr '\0' p; echo"
"""Of a tool's output: two of them fill the window, and the history has to be compacted."""


@dataclass
class Count:
    asked: int = 0
    """Numbers handed out: one whose turn was accepted but not acknowledged is never used again."""
    accepted: dict[int, str] = field(default_factory=dict)
    """Acknowledged turns by their number."""
    restarts_s: list[float] = field(default_factory=list)
    runner_kills: int = 0
    kills: int = 0
    cancelling: set[int] = field(default_factory=set)
    """Those whose cancellation was asked for: they may end so."""
    cancelled: set[int] = field(default_factory=set)
    """Those whose cancellation was acknowledged: they must."""
    answered: int = 0
    """Approvals given by the person, restarts between question and answer included."""


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def script(address: str) -> list[dict[str, Any]]:
    """Every turn uses every built-in tool; what has an effect leaves a line that says whose."""
    notes = r"notes-\1.txt"
    return [
        {"match": r"task (\d{4}(\d))", "tool_calls": [
            call("shell", command=r"echo shell \1 >> effects.log; sleep 0.0\2; "
                 rf"{PADDING}; echo did-one \1")]},
        {"match": r"did-one (\d+)", "tool_calls": [
            call("write_file", path=notes, content="note \\1\ntail"),
            call("read_file", path="effects.log"),
            call("edit_file", path=notes, old="tail", new="edit \\1\ntail"),
            call("shell", command=r"echo second \1 >> effects.log; echo did-two \1")]},
        {"match": r"did-two (\d+)", "tool_calls": [
            call("shell", command=rf"echo asked \1 >> effects.log; {PADDING}; "
                 r"echo did-ask \1")]},
        {"match": r"did-ask (\d+)", "tool_calls": [
            call("list_files"), call("search_files", pattern=r"edit \1"),
            call("fetch", url=rf"http://{address}/page/\1"),
            call("remember", text=r"fact \1"),
            call("ask_agent", agent="helper", prompt=r"help \1")]},
        {"match": r"help (\d+)", "tool_calls": [
            call("shell", command=r"echo child \1 >> effects.log; echo did-child \1")]},
        {"match": r"did-child (\d+)", "tool_calls": [
            call("ask_agent", agent="expert", prompt=r"counsel \1")]},
        {"match": r"counsel (\d+)", "tool_calls": [
            call("shell", command=r"echo grandchild \1 >> effects.log; echo did-grand \1")]},
        {"match": r"did-grand (\d+)", "reply": r"advice \1"},
        {"match": r"advice (\d+)", "reply": r"helped \1"},
        {"match": r"helped (\d+)", "tool_calls": [call("recall", query=r"\1")]},
        {"match": r"fact (\d+)", "reply": r"done \1", "tokens_per_s": 100},
    ]  # fmt: skip


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--with-runner", action="store_true", help="kill tool runners too")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    parser.add_argument("--keep", action="store_true", help="keep the home for a look")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="kills-"))
    try:
        figures = await measure(home, options)
    finally:
        if not options.keep:
            shutil.rmtree(home)
    report(figures, as_json=options.json)


async def measure(home: Path, options: argparse.Namespace) -> dict[str, Any]:
    chance, count = random.Random(options.seed), Count()
    async with serving_pages() as (address, pages):
        (home / "config.toml").write_text(CONFIG.replace("127.0.0.1:PORT", address))
        (home / "script.json").write_text(json.dumps(script(address)))
        return {**await kill_and_count(home, options, chance, count), "pages": len(pages)}


@asynccontextmanager
async def serving_pages() -> AsyncIterator[tuple[str, set[str]]]:
    """A web server for `fetch`, its address, and the paths it was asked for so far."""
    asked: set[str] = set()

    async def page(request: web.Request) -> web.Response:
        asked.add(request.path)
        return web.Response(text=f"this is {request.path}")

    app = web.Application()
    app.router.add_get("/{path:.*}", page)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"{host}:{port}", asked
    finally:
        await runner.cleanup()


async def kill_and_count(
    home: Path, options: argparse.Namespace, chance: random.Random, count: Count
) -> dict[str, Any]:
    for _ in range(options.kills):
        daemon = await restart(home, count)
        await until_killed(daemon, count, chance, options)
        if not options.json:
            print(f"\r{count.kills} kills, {len(count.accepted)} turns", end="", file=sys.stderr)
    daemon = await restart(home, count)
    person = asyncio.create_task(answering(daemon, count))
    try:
        return await settle(daemon, home, count)
    finally:
        person.cancel()
        await asyncio.gather(person, return_exceptions=True)
        await daemon.session.close()
        await daemon.stop()


async def restart(home: Path, count: Count) -> Daemon:
    began_s = time.monotonic()
    daemon = await start(home)
    count.restarts_s.append(time.monotonic() - began_s)
    return daemon


async def until_killed(
    daemon: Daemon, count: Count, chance: random.Random, options: argparse.Namespace
) -> None:
    """Start turns for a random while, then kill -9; a turn counts once it was acknowledged."""

    async def starting() -> None:
        for _ in range(TURNS_AT_ONCE):
            number, count.asked = count.asked, count.asked + 1
            turn = await daemon.start_turn(f"task {number:05d}", "worker")
            count.accepted[number] = turn
            await asyncio.sleep(chance.uniform(0, 0.3))
            if chance.random() < CANCELLED_SHARE:
                count.cancelling.add(number)
                _, said = await daemon.post(f"/api/turns/{turn}/cancel")
                if said.get("cancelled"):
                    count.cancelled.add(number)

    tasks = [asyncio.create_task(starting()), asyncio.create_task(answering(daemon, count))]
    await asyncio.sleep(chance.uniform(0.05, UP_S_MAX))
    if options.with_runner:
        with suppress(TimeoutError):
            async with asyncio.timeout(RUNNER_WAIT_S):
                while not runners(daemon):
                    await asyncio.sleep(0.005)
        count.runner_kills += kill_runners(daemon)
    daemon.kill()
    await daemon.process.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await daemon.session.close()
    count.kills += 1


async def answering(daemon: Daemon, count: Count) -> None:
    """The person: allows whatever is asked, until the daemon is gone. What is in doubt waits."""
    while True:
        for question in (await daemon.get("/api/approvals"))["approvals"]:
            if question["reason"] == "in_doubt":
                continue
            place = f"/api/approvals/{question['id']}"
            status, _ = await daemon.post(place, {"decision": "allow_once"})
            count.answered += status == 200
        await asyncio.sleep(0.05)


def runners(daemon: Daemon) -> list[int]:
    """The tool runners of this daemon that are at work, found by the calls folder in their command
    line; the starter that forks them, which is its child, is none."""
    return [pid for pid, is_starter in _tool_processes(daemon) if not is_starter]


def kill_runners(daemon: Daemon) -> int:
    """SIGKILL them, and the starter; how many runners were hit."""
    killed = 0
    for pid, is_starter in _tool_processes(daemon):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            killed += not is_starter
    return killed


def _tool_processes(daemon: Daemon) -> Iterator[tuple[int, bool]]:
    calls = str(daemon.home / "state" / "calls").encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if b"/appliance/tools/" in command and calls in command:
            yield int(entry.name), b"starter" in command and parent == daemon.process.pid


async def settle(daemon: Daemon, home: Path, count: Count) -> dict[str, Any]:
    """Wait until nothing moves any more, then compare the journal with the files."""
    deadline_s = time.monotonic() + 300
    while time.monotonic() < deadline_s:
        unfinished = await daemon.get("/api/turns", status=",".join(UNFINISHED), limit=1000)
        if not {turn["id"] for turn in unfinished["turns"]} - await asking_parents(daemon):
            break
        await asyncio.sleep(0.3)
    parents = await asking_parents(daemon)
    states: dict[int, str] = {}
    for number, turn in count.accepted.items():
        state = (await daemon.get(f"/api/turns/{turn}")).get("status", "lost")
        states[number] = "in_doubt" if turn in parents else state
    in_doubt = sum(state == "in_doubt" for state in states.values())
    may_end = {number: {"done", "in_doubt"} for number in states}
    for number in count.cancelling:
        may_end.get(number, set()).add("cancelled")
    lost = sum(state not in may_end[number] for number, state in states.items())
    effects = Counter(
        line
        for log in (home / "state" / "workspaces").glob("*/effects.log")
        for line in log.read_text().splitlines()
    )
    for note in (home / "state" / "workspaces").glob("*/notes-*.txt"):
        effects.update(line for line in note.read_text().splitlines() if line.startswith("edit"))
    effects.update(remembered(home))
    done = [number for number, state in states.items() if state == "done"]
    kinds = ("shell", "second", "asked", "edit", "fact", "child", "grandchild")
    wanted = {f"{kind} {number:05d}" for number in done for kind in kinds}
    listed = {turn["id"] for turn in
              (await daemon.get("/api/turns", status="in_doubt", limit=1000))["turns"]}  # fmt: skip
    doctor = await daemon.get("/api/doctor")
    chain = next(check for check in doctor["checks"] if check["name"] == "journal")
    return {
        "kills": count.kills,
        "runner_kills": count.runner_kills,
        "accepted": len(count.accepted),
        "done": len(done),
        "lost": lost,
        "cancelled": sum(state == "cancelled" for state in states.values()),
        "cancellations_lost": sum(states[number] != "cancelled" for number in count.cancelled),
        "answered": count.answered,
        "compacted": journalled(home, "history.compacted"),
        "twice": sum(times - 1 for times in effects.values()),
        "in_doubt": in_doubt,
        "in_doubt_unlisted": sum(
            count.accepted[number] not in listed | parents
            for number, state in states.items()
            if state == "in_doubt"
        ),
        "effects": sum(effects.values()),
        "missing": len(wanted - effects.keys()),
        "restart_p50_s": round(statistics.median(count.restarts_s), 3),
        "restart_p95_s": round(sorted(count.restarts_s)[int(len(count.restarts_s) * 0.95)], 3),
        "chain_ok": chain["ok"],
    }


async def asking_parents(daemon: Daemon) -> set[str]:
    """Turns that wait for the turn of another agent, which is in doubt and asks a person; and
    those that wait for them."""
    states = ",".join({*UNFINISHED, "in_doubt"})
    turns = (await daemon.get("/api/turns", status=states, limit=1000))["turns"]
    parent_of = {turn["id"]: turn["parent_turn"] for turn in turns}
    found: set[str] = set()
    pending = [turn["parent_turn"] for turn in turns if turn["status"] == "in_doubt"]
    while pending:
        parent = pending.pop()
        if parent is not None and parent not in found:
            found.add(parent)
            pending.append(parent_of.get(parent))
    return found


def journalled(home: Path, kind: str) -> int:
    """How many events of a kind there are."""
    file = home / "state" / FILE_NAME
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as reader:
        row = reader.execute("SELECT count(*) FROM event WHERE kind = ?", (kind,)).fetchone()
    return int(row[0])


def remembered(home: Path) -> list[str]:
    """Every fact that was kept, as often as it was kept."""
    file = home / "state" / FILE_NAME
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as reader:
        rows = reader.execute("SELECT body FROM event WHERE kind = 'note.remembered'").fetchall()
    return [json.loads(body)["text"] for (body,) in rows]


if __name__ == "__main__":
    asyncio.run(main())
