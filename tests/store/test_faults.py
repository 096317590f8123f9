"""What the disk, the power button and a second daemon can do; nothing acknowledged is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.clock import VirtualClock
from appliance.errors import Conflict, StoreError
from appliance.store.database import Database
from appliance.store.journal import Draft, Journal

REPOSITORY = Path(__file__).resolve().parents[2]

WRITER = """
import asyncio, sys
from pathlib import Path
from appliance.clock import SystemClock
from appliance.store.database import Database
from appliance.store.journal import Draft, Journal

async def write(journal, stream):
    while True:
        (event,) = await journal.append(Draft(stream, "k", {"text": "x" * 500}))
        print(event.seq, flush=True)

async def main():
    async with Database(Path(sys.argv[1])) as database:
        journal = Journal(database, SystemClock())
        await asyncio.gather(*(write(journal, f"s{n}") for n in range(8)))

asyncio.run(main())
"""


def write_until_killed(folder: Path, appends: int) -> set[int]:
    """A real writer, killed after so many acknowledgements; returns those it printed."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        text=True,
    ) as writer:
        assert writer.stdout is not None
        acknowledged = {int(writer.stdout.readline()) for _ in range(appends)}
        writer.send_signal(signal.SIGKILL)
        return acknowledged | {int(line) for line in writer.stdout if line.endswith("\n")}


async def test_a_file_that_was_taken_away_gets_nothing_more_and_is_used_again_once_back(
    tmp_path: Path,
) -> None:
    async with Database(tmp_path) as database:
        journal = Journal(database, VirtualClock())
        await journal.append(Draft("s", "k", {"text": "kept"}))
        aside = tmp_path / "aside"
        database.path.rename(aside)
        with pytest.raises(StoreError, match="removed or replaced"):
            await journal.append(Draft("s", "k", {"text": "lost"}))
        aside.rename(database.path)
        (event,) = await journal.append(Draft("s", "k", {"text": "kept, too"}))
        assert event.seq == 2


async def kill_rounds(folder: Path, rounds: int) -> None:
    chance = random.Random(7)
    for _ in range(rounds):
        acknowledged = write_until_killed(folder, chance.randint(1, 150))
        async with Database(folder) as database:
            report = await Journal(database, VirtualClock()).verify()
        assert report.ok
        assert report.rows >= max(acknowledged)


async def test_no_acknowledged_event_is_lost_when_the_writer_is_killed(tmp_path: Path) -> None:
    await kill_rounds(tmp_path, 8)


@pytest.mark.slow
async def test_no_acknowledged_event_is_lost_in_200_kills(tmp_path: Path) -> None:
    await kill_rounds(tmp_path, 200)


async def test_a_second_opener_is_told_who_has_the_folder(
    database: Database, tmp_path: Path
) -> None:
    with pytest.raises(Conflict, match=f"pid {os.getpid()}"):
        async with Database(tmp_path):
            pass


async def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "appliance.db"
    damaged = b"not a database at all " * 500
    path.write_bytes(damaged)
    with pytest.raises(StoreError, match="not a database") as caught:
        async with Database(tmp_path):
            pass
    assert not caught.value.retryable
    assert "backup" in caught.value.hint
    assert path.read_bytes() == damaged


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


async def test_a_read_only_folder_is_refused_with_a_hint(small_disk: Path) -> None:
    remount(small_disk, "ro")
    with pytest.raises(StoreError, match=r"[Rr]ead-only") as caught:
        async with Database(small_disk):
            pass
    assert caught.value.hint


async def fill(journal: Journal, acknowledged: list[int], opens_work: bool) -> StoreError:
    """Append until refused."""
    note = Draft("s", "k", {"text": "x" * 20_000})
    while True:
        try:
            (event,) = await journal.append(note, opens_work=opens_work)
        except StoreError as refusal:
            return refusal
        acknowledged.append(event.seq)


async def test_a_full_disk_refuses_new_work_first_then_all_and_heals(small_disk: Path) -> None:
    acknowledged: list[int] = []
    async with Database(small_disk) as database:
        journal = Journal(database, VirtualClock())
        for size_mib in range(32, 96, 16):
            refused_new = await fill(journal, acknowledged, opens_work=True)
            before = len(acknowledged)
            refused_all = await fill(journal, acknowledged, opens_work=False)
            assert refused_new.retryable and refused_all.retryable
            assert "no new work" in refused_new.message and "full" in refused_all.hint
            assert len(acknowledged) - before > 10, "the reserve lets running work go on"
            events = await journal.read_all(limit=10_000)
            assert [event.seq for event in events] == acknowledged, "reading goes on"
            remount(small_disk, f"size={size_mib}m")
            (event,) = await journal.append(Draft("s", "k", {}), opens_work=True)
            acknowledged.append(event.seq)
        assert (await journal.verify()).rows == len(acknowledged)
