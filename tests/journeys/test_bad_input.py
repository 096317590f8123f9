"""Bad configuration, bad places and bad clients: each is told so clearly, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import SCRIPTED_CONFIG, Daemon, cli, running, write_home

TALKATIVE = SCRIPTED_CONFIG.replace("slots = 8", "context_window = 1000000")
TALKATIVE += "limits = { output_tokens_max = 1000000 }\n"
FILL_TRIES = 50
SLOW_TALK = {"match": "slow", "reply": "word " * 60, "tokens_per_s": 15}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB, to hold a state folder."""
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


def fill(folder: Path, name: str = "ballast", keep: int = 0) -> Path:
    """A file that takes what is free on this file system but `keep` bytes; an empty one where
    that is nothing. The daemon may take some of it between the look and the deed: then look
    again."""
    ballast = folder / name
    for _ in range(FILL_TRIES):
        disk = os.statvfs(folder)
        size = disk.f_bavail * disk.f_frsize - keep
        with suppress(OSError), ballast.open("wb") as file:
            if size > 0:
                os.posix_fallocate(file.fileno(), 0, size)
            return ballast
    raise AssertionError(f"{folder} could not be filled")


def fill_with_reserve(disk: Path) -> list[Path]:
    """Fill it to the last block, what the daemon had put aside for a full disk included. The
    daemon may give its reserve up by itself, meanwhile."""
    ballast = fill(disk)
    (disk / "state" / "reserve").unlink(missing_ok=True)
    return [ballast, fill(disk / "state")]


def state_on(folder: Path) -> str:
    scripted = SCRIPTED_CONFIG.replace("slots = 8", "slots = 8\ncontext_window = 100000")
    return f'[daemon]\nstate_dir = "{folder}/state"\n' + scripted


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ('[models.main]\nengine = "scripted"\nscript = "s.json"\nslotz = 3\n', ":4: models.main"),
        ('[daemon]\ndrain_s = "soon"\n', ":2: daemon.drain_s"),
        ("[daemon]\ndrain_s = -1\n", ":2: daemon.drain_s"),
        ('[agents.a]\nmodels = ["nowhere"]\n', "nowhere"),
        ("[daemon\n", ":1"),
    ],
)
async def test_a_wrong_config_names_file_line_and_key_and_the_daemon_does_not_start(
    tmp_path: Path, config: str, wanted: str
) -> None:
    home = write_home(tmp_path, [{"reply": "ok"}], config)
    code, _, err = await cli(home, "serve")
    assert code == 2, err
    assert "config.toml" in err and wanted in err, err
    assert "Traceback" not in err
    assert not (home / "state" / "appliance.db").exists()
    code, _, checked = await cli(home, "config", "check")
    assert code == 2
    assert wanted in checked


async def test_a_socket_path_too_long_is_named_with_what_to_set(tmp_path: Path) -> None:
    home = tmp_path / ("deep" * 30)
    code, _, err = await cli(write_home(home, [{"reply": "ok"}]), "serve")
    assert code == 2, err
    assert "too long" in err and "[daemon] socket" in err
    assert "Traceback" not in err


async def test_a_read_only_state_folder_is_named_with_a_hint(
    small_disk: Path, tmp_path: Path
) -> None:
    home = write_home(tmp_path / "home", [{"reply": "kept"}], state_on(small_disk))
    async with running(home) as daemon:
        turn = (await daemon.ask("remember this"))["turn"]
    remount(small_disk, "ro")
    code, _, err = await cli(home, "serve")
    assert code == 1, err
    assert "ead-only" in err and str(small_disk) in err and "permissions" in err
    assert "Traceback" not in err
    remount(small_disk, "rw")
    async with running(home) as daemon:
        assert (await daemon.get(f"/api/turns/{turn}"))["text"] == "kept"


async def test_a_folder_that_turns_read_only_refuses_new_turns_and_heals(
    small_disk: Path, tmp_path: Path
) -> None:
    home = write_home(tmp_path / "home", [{"reply": "kept"}], state_on(small_disk))
    async with running(home) as daemon:
        turn = (await daemon.ask("remember this"))["turn"]
        # Only a file system without open writers can be remounted read-only, so a daemon meets
        # it as a full one that gives no block at all.
        ballast = fill_with_reserve(small_disk)
        status, problem = await refused(daemon)
        assert status == 507, problem
        assert (await daemon.get(f"/api/turns/{turn}"))["text"] == "kept"
        for file in ballast:
            file.unlink()
        assert (await daemon.ask("again"))["text"] == "kept"


async def refused(daemon: Daemon) -> tuple[int, Any]:
    """Start turns until one is refused."""
    for _ in range(200):
        status, answer = await daemon.post(
            "/api/turns", {"agent": "assistant", "text": "more " * 4000}
        )
        if status != 202:
            return status, answer
    raise AssertionError("the disk never ran full")


async def test_on_a_full_disk_new_turns_are_refused_running_ones_end_and_it_heals_by_itself(
    small_disk: Path, tmp_path: Path
) -> None:
    home = write_home(
        tmp_path / "home", [SLOW_TALK, {"reply": "kept"}], state_on(small_disk)
    )  # fmt: skip
    async with running(home) as daemon:
        slow = await daemon.start_turn("slow one")
        kept = [await daemon.start_turn(f"short {n}") for n in range(10)]
        for turn in kept:
            await daemon.ended(turn)
        ballast = fill(small_disk, keep=64 << 10)
        status, problem = await refused(daemon)
        assert (status, problem["code"]) == (507, "store_failed"), problem
        assert "full" in problem["detail"] and "free some space" in problem["hint"]
        assert problem["retryable"] is True
        code, _, err = await cli(home, "ask", "assistant", "one more")
        assert code == 1 and "free some space" in err
        assert (await daemon.get("/readyz"))["ok"]
        for turn in kept:
            assert (await daemon.get(f"/api/turns/{turn}"))["text"] == "kept"
        assert (await daemon.ended(slow))["type"] == "turn.completed", "it ends on the reserve"
        ballast.unlink()
        assert (await daemon.ask("and now"))["text"] == "kept"
        everyone = (await daemon.get("/api/turns", limit=1000))["turns"]
        for turn in everyone:
            assert (await daemon.ended(turn["id"]))["type"] == "turn.completed"
        checks = (await daemon.get("/api/doctor"))["checks"]
        assert next(check for check in checks if check["name"] == "journal")["ok"]
    async with running(home) as daemon:
        again = (await daemon.get("/api/turns", limit=1000))["turns"]
        assert {turn["id"] for turn in again} == {turn["id"] for turn in everyone}


async def test_a_turn_cancelled_while_the_disk_is_full_is_cancelled_once_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    slower = SLOW_TALK | {"reply": "word " * 75}
    home = write_home(tmp_path / "home", [slower, {"reply": "kept"}], state_on(small_disk))
    async with running(home) as daemon:
        slow = await daemon.start_turn("slow one")
        # The reserve would let it end; without it, it has to wait.
        ballast = fill_with_reserve(small_disk)
        async with asyncio.timeout(60):
            while f"turn {slow} waits for the journal" not in daemon.log:
                await asyncio.sleep(0.05)
                ballast.append(fill(small_disk / "state", f"more-{len(ballast)}"))
        status, answer = await daemon.post(f"/api/turns/{slow}/cancel")
        assert (status, answer["cancelled"]) == (200, True)
        for file in ballast:
            file.unlink()
        async with asyncio.timeout(60):
            assert (await daemon.ended(slow))["type"] == "turn.cancelled"


async def test_a_client_gone_in_mid_stream_frees_its_place_and_its_turn_goes_on(
    tmp_path: Path,
) -> None:
    home = write_home(tmp_path, [SLOW_TALK])
    async with running(home) as daemon:
        turn = await daemon.start_turn("slow one")
        idle = open_sockets(daemon)
        followers = [await follow_by_hand(daemon.socket, turn) for _ in range(20)]
        assert open_sockets(daemon) >= idle + 20
        for _, writer in followers:
            writer.close()
        async with asyncio.timeout(60):
            while open_sockets(daemon) > idle:
                await asyncio.sleep(0.05)
        ended = await daemon.ended(turn)
        assert ended["text"] == "word " * 60
        assert "Traceback" not in daemon.log


@pytest.mark.slow
async def test_a_reader_that_never_reads_is_dropped_and_nobody_waits_for_it(
    tmp_path: Path,
) -> None:
    """Written is what the kernel took; a full pipe for `WRITE_S` (15 s) ends the follower."""
    # One event is larger than every buffer between the two sides.
    home = write_home(tmp_path, [{"reply": "x" * 400_000}], TALKATIVE)
    async with running(home) as daemon:
        turn = (await daemon.ask("say much"))["turn"]
        idle = open_sockets(daemon)
        with closing(socket.socket(socket.AF_UNIX)) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(str(daemon.socket))
            deaf.sendall(f"GET /api/turns/{turn}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            async with asyncio.timeout(60):
                while open_sockets(daemon) == idle:
                    await asyncio.sleep(0.05)
            assert (await daemon.ended(turn))["type"] == "turn.completed"
            async with asyncio.timeout(60):
                while open_sockets(daemon) > idle:
                    await asyncio.sleep(0.2)


async def test_an_answer_of_a_megabyte_reaches_the_command_line_whole(tmp_path: Path) -> None:
    home = write_home(tmp_path, [{"reply": "x" * 1_000_000}], TALKATIVE)
    async with running(home):
        code, out, err = await cli(home, "ask", "assistant", "say much", "--json")
        assert code == 0, err[-2000:]
        assert len(json.loads(out.splitlines()[-1])["text"]) == 1_000_000


async def follow_by_hand(
    path: Path, turn: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Follow a turn on a connection of one's own; returns once the first event is there."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(f"GET /api/turns/{turn}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await reader.readuntil(b"data: ")
    return reader, writer


def open_sockets(daemon: Daemon) -> int:
    """Sockets the daemon holds open."""
    folder = Path(f"/proc/{daemon.process.pid}/fd")
    found = 0
    for link in folder.iterdir():
        try:
            found += os.readlink(link).startswith("socket:")
        except OSError:
            continue
    return found


async def test_doctor_names_the_row_of_the_journal_that_was_tampered_with(tmp_path: Path) -> None:
    home = write_home(tmp_path, [{"reply": "ok"}])
    async with running(home) as daemon:
        turn = (await daemon.ask("the truth"))["turn"]
        code, out, _ = await cli(home, "doctor")
        assert code in (0, 1) and "the chain holds" in " ".join(out.split())
    with closing(sqlite3.connect(home / "state" / "appliance.db")) as database:
        (seq,) = database.execute(
            "SELECT seq FROM event WHERE turn = ? AND kind = 'turn.accepted'", (turn,)
        ).fetchone()
        database.execute(
            "UPDATE event SET body = replace(body, 'the truth', 'a lie') WHERE seq = ?", (seq,)
        )
        database.commit()
    async with running(home):
        code, out, err = await cli(home, "doctor")
        said = " ".join((out + err).split())
        assert code == 1
        assert f"breaks at event {seq}" in said, said
        assert "restore a backup" in said


async def test_more_turns_and_more_waiting_steps_than_configured_are_told_to_come_back(
    tmp_path: Path,
) -> None:
    config = SCRIPTED_CONFIG.replace("slots = 8", "slots = 1")
    config = "[daemon]\nturns_max = 3\nqueue_max = 1\n" + config
    home = write_home(tmp_path, [SLOW_TALK | {"reply": "word " * 1200}], config)
    async with running(home) as daemon:
        one = await daemon.start_turn("slow one")
        two = await daemon.start_turn("slow two")
        three = await daemon.start_turn("slow three")
        ended = await daemon.ended(three)
        assert (ended["type"], ended["error"]["code"]) == ("turn.failed", "overloaded")
        assert "1 requests wait" in ended["error"]["message"]
        four = await daemon.start_turn("slow four")
        assert (await daemon.ended(four))["error"]["code"] == "overloaded"
        edited = config.replace("turns_max = 3", "turns_max = 2")
        (home / "config.toml").write_text(edited)
        async with asyncio.timeout(60):
            while True:
                status, answer = await daemon.post(
                    "/api/turns", {"agent": "assistant", "text": "slow five"}
                )
                if status != 202:
                    break
                await daemon.ended(answer["turn"])
        assert (status, answer["code"]) == (429, "overloaded"), answer
        assert "2 turns are unfinished" in answer["detail"] and "turns_max" in answer["hint"]
        for turn in (one, two):
            await daemon.post(f"/api/turns/{turn}/cancel")
