"""The configuration of a real daemon edited at random, by its file, while agents work.

Every saved file binds agents to other models or changes a model, in the ways editors save: over the
old text, in two halves, by renaming another file over it. Some files are broken and must change
nothing. Each model answers with its own name many times over, so that a reply from two models, from
the wrong one, twice or not at all is seen.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.daemons import Daemon, running

AGENTS = 4
MODELS = 4
WORDS = 12
SEEN_LIMIT_S = 30.0
"""Only breaks a hang."""


@dataclass
class Edited:
    """Counts over one run; milliseconds from a saved file to what the API shows."""

    edits: int = 0
    broken_edits: int = 0
    turns: int = 0
    dropped: int = 0
    doubled: int = 0
    mixed: int = 0
    visible_ms: list[float] = field(default_factory=list)


async def edit_under_load(home: Path, edits: int, seed: int) -> Edited:
    """A daemon in `home`, that many edits of its file, and turns all the while."""
    return await _Editing(home, random.Random(seed)).run(edits)


class _Editing:
    def __init__(self, home: Path, rng: random.Random) -> None:
        self.home, self.rng, self.found = home, rng, Edited()
        self.versions = [0] * MODELS
        self.bound = [[rng.randrange(MODELS)] for _ in range(AGENTS)]
        """By agent, every model it was ever bound to, the present one last."""
        self.visible = [0] * AGENTS
        """By agent, the index of the binding that the API has shown."""
        self.done = False

    async def run(self, edits: int) -> Edited:
        self.home.mkdir(parents=True, exist_ok=True)
        for model in range(MODELS):
            reply = " ".join([f"m{model}"] * WORDS)
            script = [{"reply": reply, "tokens_per_s": 4000}]
            (self.home / f"m{model}.json").write_text(json.dumps(script))
        (self.home / "config.toml").write_text(self.text())
        async with running(self.home) as daemon, asyncio.TaskGroup() as group:
            for agent in range(AGENTS):
                group.create_task(self.work(daemon, agent))
            await self.edit(daemon, edits)
            self.done = True
        return self.found

    def text(self) -> str:
        parts = []
        for model, version in enumerate(self.versions):
            parts.append(f'[models.m{model}]\nengine = "scripted"\nscript = "m{model}.json"\n')
            parts.append(f"slots = {2 + version % 3}\n\n")
        for agent, bound in enumerate(self.bound):
            parts.append(f'[agents.a{agent}]\nmodels = ["m{bound[-1]}"]\npolicy = "local-only"\n\n')
        return "".join(parts)

    async def edit(self, daemon: Daemon, edits: int) -> None:
        for _ in range(edits):
            self.found.edits += 1
            if self.rng.random() < 0.1:
                await self.break_and_mend(daemon)
                continue
            agent = self.rng.randrange(AGENTS)
            others = [model for model in range(MODELS) if model != self.bound[agent][-1]]
            self.bound[agent].append(self.rng.choice(others))
            if self.rng.random() < 0.2:
                self.versions[self.rng.randrange(MODELS)] += 1
            began_s = time.monotonic()
            await self.save(self.text())
            await self.until_shown(daemon, agent, f"m{self.bound[agent][-1]}")
            self.found.visible_ms.append(1000 * (time.monotonic() - began_s))
            self.visible[agent] = len(self.bound[agent]) - 1

    async def save(self, text: str) -> None:
        """As one of the ways editors save."""
        file = self.home / "config.toml"
        match self.rng.randrange(3):
            case 0:
                file.write_text(text)
            case 1:
                with file.open("w") as out:
                    out.write(text[: len(text) // 2])
                    out.flush()
                    await asyncio.sleep(0)
                    out.write(text[len(text) // 2 :])
            case _:
                fresh = self.home / "config.toml.new"
                fresh.write_text(text)
                fresh.replace(file)

    async def until_shown(self, daemon: Daemon, agent: int, model: str) -> None:
        async with asyncio.timeout(SEEN_LIMIT_S):
            while True:
                shown = await daemon.get("/api/agents")
                entry = next(each for each in shown["agents"] if each["name"] == f"a{agent}")
                if entry["models"] == [model]:
                    return

    async def break_and_mend(self, daemon: Daemon) -> None:
        """A file that names a model that is not there, or ends in the middle."""
        self.found.broken_edits += 1
        text = self.text()
        broken = text.replace('"m0"', '"m99"') if '"m0"' in text else text[:-40] + "["
        await self.save(broken)
        async with asyncio.timeout(SEEN_LIMIT_S):
            while not (await daemon.get("/api/status"))["config_error"]:
                pass
        await self.save(text)
        async with asyncio.timeout(SEEN_LIMIT_S):
            while (await daemon.get("/api/status"))["config_error"]:
                pass

    async def work(self, daemon: Daemon, agent: int) -> None:
        while not self.done:
            first = self.visible[agent]
            self.found.turns += 1
            ends = []
            turn = await daemon.start_turn("go", f"a{agent}")
            async for event in daemon.follow(turn):
                if event.get("type") in ("turn.completed", "turn.failed", "turn.cancelled"):
                    ends.append(event)
            texts = [str(end.get("text", "")) for end in ends]
            allowed = {f"m{model}" for model in self.bound[agent][first:]}
            self.found.dropped += not any(texts)
            self.found.doubled += len(ends) > 1 or any(len(t.split()) > WORDS for t in texts)
            self.found.mixed += any(
                len(set(text.split())) > 1 or not set(text.split()) <= allowed for text in texts
            )
