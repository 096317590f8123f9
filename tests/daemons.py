"""Real daemons for tests: started, asked over their socket, stopped or killed by pid."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

READY_S = 60.0
PATIENCE_S = 1.0
REPOSITORY = Path(__file__).resolve().parents[1]

SCRIPTED_CONFIG = """
[models.main]
engine = "scripted"
script = "script.json"
slots = 8

[agents.assistant]
models = ["main"]
policy = "local-only"
"""


@dataclass
class Daemon:
    """One `appliance serve` under a home of its own."""

    home: Path
    process: asyncio.subprocess.Process
    session: aiohttp.ClientSession
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def socket(self) -> Path:
        return self.home / "run" / "appliance.sock"

    @property
    def log(self) -> str:
        return (self.home / "daemon.log").read_text()

    async def get(self, path: str, **query: Any) -> Any:
        async with self.session.get(path, params=query) as response:
            return await response.json(content_type=None)

    async def post(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        async with self.session.post(path, json=body or {}, headers=headers) as response:
            return response.status, await response.json(content_type=None)

    async def start_turn(self, text: str, agent: str = "assistant", **body: Any) -> str:
        status, started = await self.post("/api/turns", {"agent": agent, "text": text, **body})
        assert status == 202, started
        turn: str = started["turn"]
        return turn

    async def follow(self, turn: str, after: int = 0) -> AsyncIterator[dict[str, Any]]:
        async with self.session.get(
            f"/api/turns/{turn}/events", params={"after": after}
        ) as response:
            assert response.status == 200, await response.text()
            rest = b""
            async for piece in response.content.iter_any():
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    if line.startswith(b"data: "):
                        yield json.loads(line[6:])

    async def ended(self, turn: str) -> dict[str, Any]:
        """The last event of a turn, once it is there."""
        last: dict[str, Any] = {}
        async for item in self.follow(turn):
            last = item
        return last

    async def ask(self, text: str, agent: str = "assistant", **body: Any) -> dict[str, Any]:
        return await self.ended(await self.start_turn(text, agent, **body))

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), 60)

    async def end(self) -> None:
        """Stop it when all has been shown: not many seconds later because a model still talks."""
        self.process.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), PATIENCE_S)
        await self.stop()  # a second SIGTERM ends the waiting for running steps


@asynccontextmanager
async def running(home: Path, **environment: str) -> AsyncIterator[Daemon]:
    """A daemon that serves; it is ended on exit if it has not ended."""
    daemon = await start(home, **environment)
    try:
        yield daemon
    finally:
        await daemon.session.close()
        if daemon.process.returncode is None:
            await daemon.end()


async def start(home: Path, **environment: str) -> Daemon:
    """Start a daemon and wait until it answers. The caller ends it."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "daemon.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "appliance.cli.main", "--home", str(home), "serve",
            stdout=log, stderr=log, env={**os.environ, **environment}, cwd=REPOSITORY,
        )  # fmt: skip
    daemon = Daemon(home, process, _session(home / "run" / "appliance.sock"))
    try:
        async with asyncio.timeout(READY_S):
            while not await _answers(daemon):
                assert process.returncode is None, daemon.log
                await asyncio.sleep(0.02)
    except BaseException:
        await daemon.session.close()
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    return daemon


async def cli(home: Path, *arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    """Run the command line; exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "appliance.cli.main", "--home", str(home), *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, cwd=REPOSITORY,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(stdin), 120)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def write_home(home: Path, script: list[dict[str, Any]], config: str = SCRIPTED_CONFIG) -> Path:
    """A home whose one model replays this script."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.toml").write_text(config)
    (home / "script.json").write_text(json.dumps(script))
    return home


def _session(socket: Path) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        "http://appliance", connector=aiohttp.UnixConnector(str(socket), limit=0)
    )


async def _answers(daemon: Daemon) -> bool:
    try:
        async with daemon.session.get("/readyz") as response:
            return response.status == 200
    except (aiohttp.ClientError, OSError):
        return False
