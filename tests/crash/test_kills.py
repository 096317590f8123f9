"""kill -9 of the real daemon while real tools act, counted from outside (short; see the bench)."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


async def kills(*arguments: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(REPOSITORY / "scripts" / "bench" / "kills.py"), *arguments, "--json",
        stdout=asyncio.subprocess.PIPE, cwd=REPOSITORY,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0
    figures: dict[str, Any] = json.loads(out.splitlines()[-1])
    return figures


async def test_no_turn_is_lost_and_no_effect_happens_twice_when_the_daemon_is_killed() -> None:
    figures = await kills("--kills", "5")
    assert figures["kills"] == 5
    assert figures["accepted"] > 0
    assert (figures["lost"], figures["twice"], figures["in_doubt"]) == (0, 0, 0)
    assert (figures["missing"], figures["cancellations_lost"]) == (0, 0)
    assert figures["answered"] > 0
    assert figures["compacted"] > 0
    assert figures["chain_ok"]


async def test_nothing_is_repeated_silently_when_runners_die_with_the_daemon() -> None:
    figures = await kills("--kills", "7", "--with-runner", "--seed", "2")
    assert (figures["lost"], figures["twice"]) == (0, 0)
    assert figures["done"] + figures["in_doubt"] + figures["cancelled"] == figures["accepted"]
    assert (figures["in_doubt_unlisted"], figures["cancellations_lost"]) == (0, 0)
    assert figures["runner_kills"] > 0


@pytest.mark.slow
async def test_two_hundred_kills() -> None:
    figures = await kills("--kills", "200")
    assert (figures["lost"], figures["twice"], figures["in_doubt"]) == (0, 0, 0)
