"""How fast turns go elsewhere when a provider dies, and come back when it does.

scripts/bench/outage.py --outage-s 30 --json

A real daemon whose agent prefers the cloud, the stand-in Claude, and between them a relay that can
refuse connections, take them and say nothing, or cut them; or the stand-in answers 529 to all.
Every quarter of a second a turn is started. For each kind of death: the longest and the median turn
that began after the breaker opened (which is when a turn's route first left the cloud out), and the
seconds from the provider's return to the first turn that it answered.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from scripts.bench.report import report  # noqa: E402
from tests.daemons import Daemon, running  # noqa: E402
from tests.fakes.claude.running import Claude, claude_process, talking_to  # noqa: E402
from tests.journeys.cloud import LOCAL_REPLY, write_cloud_home  # noqa: E402

BEAT_S = 0.25
SETTLE_TURNS = 40
"""Before the provider dies: the first turn loads the engine, which takes seconds when busy."""
RETURN_S_MAX = 120.0
DEATHS = ("refused", "silent", "cut", "overloaded")


class Relay:
    """A port in front of the stand-in, and what becomes of who connects."""

    def __init__(self, port: int) -> None:
        self._behind = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.mode = "open"
        self.port = 0

    async def open(self) -> None:
        self.mode = "open"
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def die(self, mode: str) -> None:
        self.mode = mode
        if mode == "refused" and self._server is not None:
            self._server.close()
            self._server = None
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self.mode == "silent":
                await reader.read()
            elif self.mode == "open":
                await self._forward(reader, writer)
        except OSError:
            return
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", self._behind)
        self._writers.add(outer)
        try:
            ways = [asyncio.create_task(_pump(reader, outer)),
                    asyncio.create_task(_pump(inner, writer))]  # fmt: skip
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
        finally:
            self._writers.discard(outer)
            outer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()


@dataclass(frozen=True)
class Beat:
    """One turn: when it began and ended, and who answered."""

    began_s: float
    ended_s: float
    is_local: bool
    was_shut: bool
    is_right: bool


async def beat(daemon: Daemon, number: int) -> Beat:
    began_s = time.monotonic()
    turn, was_shut, text = await daemon.start_turn(f"Question {number}?", "mixed"), False, ""
    async for item in daemon.follow(turn):
        if item["type"] == "step.routed" and item["attempt"] == 0:
            was_shut = item["target"] == "local"
        text = item.get("text", "") if item["type"] == "turn.completed" else text
    ended_s = time.monotonic()
    return Beat(began_s, ended_s, text == LOCAL_REPLY, was_shut, text.endswith("[the end]"))


async def death(
    claude: Claude, relay: Relay, folder: Path, kind: str, outage_s: float
) -> dict[str, float]:
    await claude.plan(share=0.0)
    await relay.open()
    home = write_cloud_home(folder, f"http://127.0.0.1:{relay.port}")
    beats: list[asyncio.Task[Beat]] = []
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:

        async def until(moment_s: float) -> None:
            while time.monotonic() < moment_s:
                beats.append(asyncio.create_task(beat(daemon, len(beats))))
                await asyncio.sleep(BEAT_S)

        await until(time.monotonic() + SETTLE_TURNS * BEAT_S)
        if kind == "overloaded":
            await claude.plan(share=1.0, mix=["529"])
        else:
            await relay.die(kind)
        died_s = time.monotonic()
        await until(died_s + outage_s)
        if kind == "overloaded":
            await claude.plan(share=0.0)
        else:
            await relay.open()
        back_s = time.monotonic()
        while time.monotonic() < back_s + RETURN_S_MAX:
            await until(time.monotonic() + 1)
            ended = [each.result() for each in beats if each.done()]
            if any(not each.is_local and each.began_s > back_s for each in ended):
                break
        found = await asyncio.gather(*beats)
    opened_s = min((each.began_s for each in found if each.was_shut), default=float("inf"))
    after = [each.ended_s - each.began_s for each in found
             if opened_s <= each.began_s < back_s and each.was_shut]  # fmt: skip
    returned = [each.ended_s for each in found if each.began_s > back_s and not each.is_local]
    assert after, f"{kind}: the breaker never opened"
    return {
        f"{kind}_opened_after_s": round(opened_s - died_s, 2),
        f"{kind}_elsewhere_s_median": round(statistics.median(after), 3),
        f"{kind}_elsewhere_s_max": round(max(after), 3),
        f"{kind}_back_s": round(min(returned) - back_s, 1) if returned else -1.0,
        f"{kind}_wrong": sum(not each.is_right for each in found),
        f"{kind}_turns": len(found),
    }


async def measure(options: argparse.Namespace, url: str, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    relay = Relay(int(url.rpartition(":")[2]))
    for kind in options.deaths.split(","):
        async with talking_to(url, folder / f"{kind}.log") as claude:
            found |= await death(claude, relay, folder / kind, kind, options.outage_s)
        print(found, file=sys.stderr, flush=True)
    return {"outage_s": options.outage_s, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--outage-s", type=float, default=30.0)
    parser.add_argument("--deaths", default=",".join(DEATHS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, claude_process(Path(folder) / "claude") as url:
        found = asyncio.run(measure(options, url, Path(folder)))
    report(found, as_json=options.json)


if __name__ == "__main__":
    main()
