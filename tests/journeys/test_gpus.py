"""A daemon on a workstation with two cards: the real driver binding over a stub of the driver."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.daemons import Daemon, running, write_home
from tests.gpu.conftest import FakeNvml, build_stub

CONFIG = """
[gpu]
poll_s = 0.1

[models.small]
engine = "scripted"
script = "script.json"
vram_bytes = "8GiB"

[models.coder]
engine = "scripted"
script = "script.json"
vram_bytes = "20GiB"

[agents.assistant]
models = ["small"]

[agents.coder]
models = ["coder"]
"""


@asynccontextmanager
async def workstation(folder: Path) -> AsyncIterator[tuple[Daemon, FakeNvml]]:
    fake = FakeNvml(folder / "driver")
    for card in (0, 1):
        fake.gpu(card, total_mib=24576, used_mib=500)
    fake.write()
    home = write_home(folder / "home", [{"reply": "done"}], CONFIG)
    library = build_stub(folder)
    async with running(
        home, LD_LIBRARY_PATH=str(library.parent), FAKE_NVML_STATE=str(fake.state)
    ) as daemon:
        yield daemon, fake


async def until(daemon: Daemon, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first status of which the claim holds; fails after a minute without one."""
    async with asyncio.timeout(60):
        while not holds(status := await daemon.get("/api/status")):
            await asyncio.sleep(0.05)
    found: dict[str, Any] = status
    return found


def places(status: dict[str, Any]) -> dict[str, set[str]]:
    return {model["name"]: set(model["bytes_by_device"]) for model in status["models"]}


async def test_each_model_has_a_card_and_leaves_one_that_another_program_takes_or_that_is_lost(
    tmp_path: Path,
) -> None:
    async with workstation(tmp_path) as (daemon, fake):
        for agent in ("coder", "assistant"):
            assert (await daemon.ask("go", agent))["type"] == "turn.completed"
        found = places(await daemon.get("/api/status"))
        assert all(len(cards) == 1 for cards in found.values())
        first, second = found["coder"], found["small"]
        assert first != second, "20 and 8 GiB are too much for one card of 24"

        number = int(next(iter(first))[-1])
        fake.gpu(number, total_mib=24576, used_mib=24000)
        fake.process(number, 999_999, 23_500)
        fake.write()
        await until(daemon, lambda status: places(status)["coder"] != first)
        assert (await daemon.ask("go", "coder"))["type"] == "turn.completed"
        assert places(await daemon.get("/api/status"))["coder"] == second, "the other one idled"
        why = (await daemon.get("/api/decisions/eviction"))["lines"]
        assert any("other programs hold" in line for line in why), why

        fake.processes.clear()
        fake.gpu(number, total_mib=24576, used_mib=500)
        fake.gpu(1 - number, total_mib=24576, used_mib=500, err=15)
        fake.write()
        await until(daemon, lambda status: "lost" in " ".join(status["reasons"]))
        assert (await daemon.ask("go", "coder"))["type"] == "turn.completed", (
            "if need be on the host"
        )
        await until(daemon, lambda status: places(status)["coder"] != {"cpu"})
        assert (await daemon.ask("go", "coder"))["type"] == "turn.completed"
        assert places(await daemon.get("/api/status"))["coder"] == first, "and not there for good"


async def test_a_driver_that_hangs_is_told_and_holds_nobody_up(tmp_path: Path) -> None:
    async with workstation(tmp_path) as (daemon, fake):
        assert (await daemon.ask("go"))["type"] == "turn.completed"
        fake.hang_ms = 5_000
        fake.write()
        status = await until(daemon, lambda status: bool(status["reasons"]))
        assert status["state"] == "degraded"
        assert "NVML has not answered" in status["reasons"][0]
        assert (await daemon.ask("go"))["type"] == "turn.completed"
        fake.hang_ms = 0
        fake.write()
        await until(daemon, lambda status: status["state"] == "ready")
