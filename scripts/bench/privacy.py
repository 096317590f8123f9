"""Random workflows with planted canaries, and what of them the stand-in Claude was sent.

scripts/bench/privacy.py --workflows 10000 --json

A real daemon, a real stand-in with a fifth of its calls faulted (so that turns are retried and fall
back), an agent that prefers the cloud, and six ways in which something private comes its way:

- a private agent's own sessions;
- a turn labelled private in a public agent's session, whose later turns carry no label;
- an answer of a private agent that it asked (`ask_agent`);
- a note that was remembered privately and is recalled in a public session;
- a file written in a private turn and read in a later one;
- a long private history that has to be cut or compacted;
- a session that was made private, whose turns carry no label;
- a private folder whose names are listed.

Beside them, sessions with nothing private. A canary is the word CANARY and its number; what is
searched in every byte that was sent is the word in each form, so that one hit of any canary counts.
`canaries_in_journal_pct` shows that they were there to be lost; `public_share_pct` is the share of
public words that did go to the cloud.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from scripts.bench.cloud import MIX  # noqa: E402
from scripts.bench.report import report  # noqa: E402
from tests.daemons import Daemon, running  # noqa: E402
from tests.fakes.claude.canaries import forms  # noqa: E402
from tests.fakes.claude.running import Claude, claude_process, talking_to  # noqa: E402
from tests.journeys.cloud import write_cloud_home  # noqa: E402

CANARY = "CANARY"
AGENTS = """
[agents.open]
models = ["claude", "local"]
policy = "cloud-first"
label = "public"
tools = ["ask_agent", "remember", "recall", "read_file", "write_file", "list_files"]
delegates_to = ["vault"]
approvals = [{ tool = "*", decision = "allow" }]

[agents.vault]
models = ["local"]
policy = "local-only"
label = "private"

[tools]
labels = [{ path = "vault", label = "private" }]
"""
SCRIPT = [
    {"match": r"^tell key (\w+)$", "reply": rf"The word is {CANARY}-\1."},
    {
        "match": r'ORDER ask_agent \{"agent": "vault", "prompt": "(.*?)"\}',
        "tool_calls": [{"name": "ask_agent", "arguments": {"agent": "vault", "prompt": r"\1"}}],
    },
    {
        "match": r'ORDER remember \{"text": "(.*?)"\}',
        "tool_calls": [{"name": "remember", "arguments": {"text": r"\1"}}],
    },
    {
        "match": r'ORDER recall \{"query": "(.*?)"\}',
        "tool_calls": [{"name": "recall", "arguments": {"query": r"\1"}}],
    },
    {
        "match": r'ORDER write_file \{"path": "(.*?)", "content": "(.*?)"\}',
        "tool_calls": [{"name": "write_file", "arguments": {"path": r"\1", "content": r"\2"}}],
    },
    {
        "match": r'ORDER read_file \{"path": "(.*?)"\}',
        "tool_calls": [{"name": "read_file", "arguments": {"path": r"\1"}}],
    },
    {
        "match": r'ORDER list_files \{"path": "(.*?)"\}',
        "tool_calls": [{"name": "list_files", "arguments": {"path": r"\1"}}],
    },
    {"reply": "A local answer. [the end]"},
]
AT_ONCE = 24


@dataclass
class Words:
    """What was planted, and what may travel."""

    chance: random.Random
    planted: list[str] = field(default_factory=list)
    public: list[str] = field(default_factory=list)

    def canary(self) -> tuple[str, str]:
        key = f"{self.chance.randrange(16**12):012x}"
        self.planted.append(f"{CANARY}-{key}")
        return key, self.planted[-1]

    def word(self) -> str:
        self.public.append(f"PUBLIC-{self.chance.randrange(16**12):012x}")
        return self.public[-1]


@dataclass
class Session:
    """Turns of one session, each awaited to its end."""

    daemon: Daemon
    agent: str
    session: str | None = None

    async def say(self, text: str, **body: Any) -> dict[str, Any]:
        known = {"session": self.session} if self.session else {}
        turn = await self.daemon.start_turn(text, self.agent, **known, **body)
        ended = await self.daemon.ended(turn)
        self.session = ended["session"]
        return ended


def order(tool: str, **arguments: str) -> str:
    return f"ORDER {tool} {json.dumps(arguments)}"


async def all_public(daemon: Daemon, words: Words) -> None:
    session = Session(daemon, words.chance.choice(["open", "cloud", "mixed"]))
    for _ in range(words.chance.randint(1, 3)):
        await session.say(f"Think of {words.word()}.")


async def private_agent(daemon: Daemon, words: Words) -> None:
    session = Session(daemon, words.chance.choice(["secret", "vault"]))
    for _ in range(words.chance.randint(1, 3)):
        await session.say(f"Keep {words.canary()[1]}.")


async def private_turn(daemon: Daemon, words: Words) -> None:
    session = Session(daemon, "open")
    if words.chance.random() < 0.5:
        await session.say(f"Think of {words.word()}.")
    await session.say(f"Keep {words.canary()[1]}.", label="private")
    for _ in range(words.chance.randint(1, 2)):
        await session.say("And what follows from it?")


async def hand_off(daemon: Daemon, words: Words) -> None:
    session = Session(daemon, "open")
    key, _ = words.canary()
    word = words.word()
    await session.say(f"For {word}: " + order("ask_agent", agent="vault", prompt=f"tell key {key}"))
    await session.say("Say it again in other words.")


async def memory(daemon: Daemon, words: Words) -> None:
    key, canary = words.canary()
    await Session(daemon, "open").say(
        order("remember", text=f"note {key} {canary}"), label="private"
    )
    session = Session(daemon, "open")
    await session.say(f"For {words.word()}: " + order("recall", query=f"note {key}"))
    await session.say("What did it say?")


async def files(daemon: Daemon, words: Words) -> None:
    session = Session(daemon, "open")
    _, canary = words.canary()
    await session.say(order("write_file", path="a.txt", content=canary), label="private")
    await session.say(order("read_file", path="a.txt"))


async def long_history(daemon: Daemon, words: Words) -> None:
    session = Session(daemon, "open")
    for number in range(4):
        text = f"Chapter {number}: {words.canary()[1]} " + "lorem ipsum " * 700
        await session.say(text, **({"label": "private"} if number == 0 else {}))


async def private_session(daemon: Daemon, words: Words) -> None:
    _, made = await daemon.post("/api/sessions", {"agent": "open", "label": "private"})
    session = Session(daemon, "open", made["id"])
    for _ in range(words.chance.randint(1, 3)):
        await session.say(f"Keep {words.canary()[1]}.")


async def names(daemon: Daemon, words: Words) -> None:
    """The file is put there by somebody else, so that its name alone can tell."""
    _, made = await daemon.post("/api/sessions", {"agent": "open"})
    folder = daemon.home / "state" / "workspaces" / made["id"] / "vault"
    folder.mkdir(parents=True)
    (folder / f"{words.canary()[1]}.txt").touch()
    session = Session(daemon, "open", made["id"])
    await session.say(f"For {words.word()}: " + order("list_files", path="."))
    await session.say("Which of them is the newest?")


Workflow = Callable[[Daemon, Words], Awaitable[None]]
WORKFLOWS: list[tuple[Workflow, float]] = [
    (all_public, 0.4), (private_agent, 0.1), (private_turn, 0.12), (hand_off, 0.12),
    (memory, 0.1), (files, 0.06), (private_session, 0.05), (names, 0.03), (long_history, 0.02),
]  # fmt: skip


async def measure(claude: Claude, folder: Path, workflows: int, seed: int) -> dict[str, Any]:
    words = Words(random.Random(seed))
    await claude.plan(share=0.2, mix=MIX, seed=seed)
    home = write_cloud_home(folder / "home", claude.url, more=AGENTS)
    (home / "script.json").write_text(json.dumps(SCRIPT))
    kinds, weights = zip(*WORKFLOWS, strict=True)
    gate = asyncio.Semaphore(AT_ONCE)
    began_s, done = time.monotonic(), 0

    async def one(workflow: Workflow) -> None:
        nonlocal done
        async with gate:
            await workflow(daemon, words)
        done += 1
        if done % 500 == 0:
            print(f"{done} of {workflows}", file=sys.stderr, flush=True)

    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        chosen = words.chance.choices(kinds, weights, k=workflows)
        await asyncio.gather(*(one(workflow) for workflow in chosen))
        shown = await daemon.get("/api/turns", limit=1)
        assert shown["turns"], "no turn was run"
    log = claude.log.read_bytes()
    for form in forms(CANARY):
        if (at := log.find(form)) >= 0:
            print(f"{form!r} was sent: {log[max(at - 2000, 0) : at + 300]!r}", file=sys.stderr)
    kept = b"".join(path.read_bytes() for path in (home / "state").glob("*.db*"))
    sample = words.chance.sample(words.planted, min(len(words.planted), 200))
    public = words.chance.sample(words.public, min(len(words.public), 400))
    arrived = sum(word.encode() in log for word in public)
    return {
        "workflows": workflows,
        "canaries_planted": len(words.planted),
        "canaries_in_journal_pct": 100 * sum(w.encode() in kept for w in sample) / len(sample),
        "canary_hits": sum(log.count(form) for form in forms(CANARY)),
        "bytes_sent": len(log),
        "public_words": len(words.public),
        "public_share_pct": 100 * arrived / len(public),
        "rejected_by_validation": len(await claude.violations()),
        "wall_s": round(time.monotonic() - began_s, 1),
    }


async def run(options: argparse.Namespace, url: str, folder: Path) -> dict[str, Any]:
    async with talking_to(url, folder / "claude-requests.log") as claude:
        return await measure(claude, folder, options.workflows, options.seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workflows", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, claude_process(Path(folder) / "claude") as url:
        found = asyncio.run(run(options, url, Path(folder)))
    report(found, as_json=options.json)


if __name__ == "__main__":
    main()
