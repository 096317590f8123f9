"""Starts the stand-in Claude server for a test and talks to its control side."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.fakes.claude.server import KEY

REPOSITORY = Path(__file__).resolve().parents[3]


@dataclass
class Claude:
    """A running stand-in."""

    url: str
    log: Path
    key: str
    session: aiohttp.ClientSession

    async def plan(self, *steps: str, **more: Any) -> None:
        """Set what comes next; see `server`."""
        async with self.session.post(
            f"{self.url}/_scenario", json={"steps": steps, **more}
        ) as answer:
            assert answer.status == 200

    async def bill(self) -> dict[str, Any]:
        return await self._get("/_bill")

    async def seen(self) -> dict[str, int]:
        return dict((await self._get("/_seen"))["seen"])

    async def connections(self) -> int:
        """How many carried its requests so far."""
        return int((await self._get("/_seen"))["connections"])

    async def violations(self) -> list[str]:
        return list((await self._get("/_seen"))["violations"])

    async def go(self) -> None:
        async with self.session.post(f"{self.url}/_go") as answer:
            assert answer.status == 200

    async def _get(self, path: str) -> dict[str, Any]:
        async with self.session.get(f"{self.url}{path}") as answer:
            return dict(await answer.json())


@contextmanager
def claude_process(folder: Path) -> Iterator[str]:
    """The stand-in as a process; yields its URL."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fakes.claude.server", "--log", str(folder / "first")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@asynccontextmanager
async def talking_to(url: str, log: Path) -> AsyncIterator[Claude]:
    """The control side of a running stand-in, started over."""
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{url}/_reset", json={"log": str(log)}) as answer:
            assert answer.status == 200
        yield Claude(url, log, KEY, session)
