"""The prober over the real pynvml, against a stub driver that a test can command."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.clock import VirtualClock
from appliance.gpu.inventory import Prober
from appliance.gpu.types import GIB, HOST, MIB, Health, Inventory
from tests.gpu.conftest import FakeNvml

POLL_S = 0.02
LIMIT_S = 0.15


async def until(prober: Prober, holds: Callable[[Inventory], bool]) -> Inventory:
    """The first snapshot of which the claim holds; fails after a minute without one."""
    async with asyncio.timeout(60):
        async for snapshot in prober.snapshots():
            if holds(snapshot):
                return snapshot
    raise AssertionError("snapshots never end")


def prober(**options: object) -> Prober:
    return Prober(interval_s=POLL_S, call_limit_s=LIMIT_S, **options)  # type: ignore[arg-type]


async def test_cards_are_told_with_memory_and_whose_it_is(fake_nvml: FakeNvml) -> None:
    fake_nvml.gpu(0, 24576, 3000)
    fake_nvml.gpu(1, 49152, 100)
    fake_nvml.process(0, os.getpid(), 1000)
    fake_nvml.process(0, 1, 1500)
    fake_nvml.write()
    async with prober() as watch:
        first, second = watch.latest.gpus
    assert (first.uuid, second.uuid) == ("GPU-fake-0", "GPU-fake-1")
    assert first.total_bytes == 24576 * MIB
    assert first.used_bytes == 3000 * MIB
    assert first.ours_bytes == 1000 * MIB
    assert first.foreign_bytes == 2000 * MIB, "other programs and the driver's own share"
    assert second.total_bytes == 48 * GIB
    assert (first.temperature_c, first.power_mw, first.utilisation_pct) == (41, 60000, 7)
    assert first.compute_capability == (9, 0)
    assert not first.is_mig
    assert watch.latest.driver_version == "580.10"
    assert watch.latest.cuda_version == "13.0"
    assert watch.latest.host.uuid == HOST


async def test_a_foreign_process_taking_memory_shows_in_the_next_snapshot(
    fake_nvml: FakeNvml,
) -> None:
    fake_nvml.gpu(0, used_mib=500)
    fake_nvml.write()
    async with prober() as watch:
        fake_nvml.gpu(0, used_mib=20500)
        fake_nvml.process(0, 1, 20000)
        fake_nvml.write()
        seen = await until(watch, lambda now: now.gpus[0].used_bytes == 20500 * MIB)
    assert seen.gpus[0].foreign_bytes == 20500 * MIB


async def test_a_hung_driver_leaves_the_last_values_marked_stale_and_the_loop_free(
    fake_nvml: FakeNvml,
) -> None:
    fake_nvml.gpu(0, used_mib=500)
    fake_nvml.write()
    async with prober() as watch:
        fake_nvml.hang_ms = 1500
        fake_nvml.write()
        lags: list[float] = []
        lag = asyncio.create_task(_measure_lag(lags))
        stale = await until(watch, lambda now: now.is_stale)
        lag.cancel()
        assert stale.gpus[0].used_bytes == 500 * MIB
        assert "has not answered" in (stale.nvml_error or "")
        assert max(lags) < 1.0, "a hung call must not hold the event loop"
        fake_nvml.hang_ms = 0
        fake_nvml.gpu(0, used_mib=700)
        fake_nvml.write()
        fresh = await until(watch, lambda now: not now.is_stale)
    assert fresh.gpus[0].used_bytes in (500 * MIB, 700 * MIB)


async def _measure_lag(lags: list[float]) -> None:
    while True:
        before = time.monotonic()
        await asyncio.sleep(0.005)
        lags.append(time.monotonic() - before - 0.005)


async def test_leaving_does_not_wait_for_a_hung_driver(fake_nvml: FakeNvml) -> None:
    fake_nvml.gpu(0)
    fake_nvml.write()
    watch = prober()
    async with watch:
        fake_nvml.hang_ms = 3000
        fake_nvml.write()
        await until(watch, lambda now: now.is_stale)
        left = time.monotonic()
    assert time.monotonic() - left < 2.0, "it did not wait for the call to come back"
    fake_nvml.hang_ms = 0
    fake_nvml.write()


async def test_a_lost_card_is_told_and_the_other_goes_on(fake_nvml: FakeNvml) -> None:
    fake_nvml.gpu(0, used_mib=500)
    fake_nvml.gpu(1, used_mib=600)
    fake_nvml.write()
    async with prober() as watch:
        fake_nvml.gpu(0, err=15)
        fake_nvml.write()
        fake_nvml.xid(0, 79)
        seen = await until(watch, lambda now: now.gpus[0].health is Health.LOST)
        lost, other = seen.gpus
        assert not lost.is_usable
        assert lost.is_stale
        assert lost.total_bytes == 24576 * MIB, "what it had is still told"
        assert other.health is Health.OK
        assert not other.is_stale
        fake_nvml.gpu(0)
        fake_nvml.write()
        back = await until(watch, lambda now: now.gpus[0].is_usable)
        assert back.gpus[0].health is Health.OK


@pytest.mark.parametrize(
    ("code", "health"),
    [
        (13, Health.OK),
        (31, Health.OK),
        (48, Health.RESET_REQUIRED),
        (74, Health.DRAINING),
        (94, Health.OK),
        (95, Health.RESET_REQUIRED),
        (9999, Health.OK),
    ],
)
async def test_an_xid_decides_by_the_table(fake_nvml: FakeNvml, code: int, health: Health) -> None:
    fake_nvml.gpu(0)
    fake_nvml.write()
    async with prober() as watch:
        fake_nvml.xid(0, code)
        seen = await until(watch, lambda now: now.gpus[0].last_xid == code)
        assert seen.gpus[0].health is health
        assert f"Xid {code}" in seen.gpus[0].reason
        later = await watch.probe()
        assert later.gpus[0].health is health, "what only a reset ends does not end by itself"


async def test_a_driver_that_asks_for_a_reset_makes_the_card_unusable(
    fake_nvml: FakeNvml,
) -> None:
    fake_nvml.gpu(0, err=16)
    fake_nvml.write()
    async with prober() as watch:
        assert watch.latest.gpus[0].health is Health.RESET_REQUIRED


@pytest.mark.parametrize("code", [9, 18])
async def test_without_a_working_driver_there_is_host_ram_one_warning_and_a_new_try_each_30_s(
    fake_nvml: FakeNvml, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    fake_nvml.init = code
    fake_nvml.gpu(0)
    fake_nvml.write()
    clock = VirtualClock()
    async with prober(clock=clock) as watch:
        assert watch.latest.gpus == ()
        assert watch.latest.nvml_error
        assert watch.latest.host.total_bytes > 0
        fake_nvml.init = 0
        fake_nvml.write()
        clock.advance_to(29.0)
        assert (await watch.probe()).gpus == (), "not tried again before 30 s"
        clock.advance_to(30.5)
        seen = await until(watch, lambda now: bool(now.gpus))
    assert seen.nvml_error is None
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


def test_without_any_library_the_machine_is_cpu_only(tmp_path: Path) -> None:
    """In a process of its own, because a library once loaded stays."""
    program = (
        "import asyncio\n"
        "from appliance.gpu.inventory import Prober\n"
        "async def main():\n"
        "    async with Prober() as watch:\n"
        "        print(len(watch.latest.gpus), watch.latest.nvml_error)\n"
        "asyncio.run(main())\n"
    )
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has a driver")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.startswith("0 NVML Shared Library Not Found")


async def test_a_consumer_sees_the_newest_snapshot_not_a_backlog(fake_nvml: FakeNvml) -> None:
    fake_nvml.gpu(0, used_mib=500)
    fake_nvml.write()
    async with prober() as watch:
        stream = watch.snapshots()
        await anext(stream)
        fake_nvml.gpu(0, used_mib=900)
        fake_nvml.write()
        for _ in range(3):
            await watch.probe()
        assert (await anext(stream)).gpus[0].used_bytes == 900 * MIB


async def test_a_lost_card_is_looked_for_again_with_the_driver_initialised_anew(
    fake_nvml: FakeNvml,
) -> None:
    fake_nvml.gpu(0, err=15)
    fake_nvml.gpu(1)
    fake_nvml.write()
    clock = VirtualClock()
    async with prober(clock=clock) as watch:
        assert [card.is_usable for card in watch.latest.gpus] == [False, True]
        fake_nvml.driver = "581.20"
        fake_nvml.write()
        clock.advance_to(29.0)
        assert (await watch.probe()).driver_version == "580.10"
        clock.advance_to(31.0)
        seen = await until(watch, lambda now: now.driver_version == "581.20")
    assert [card.is_usable for card in seen.gpus] == [False, True]
