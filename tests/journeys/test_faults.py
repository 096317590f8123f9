"""What breaks under a running daemon, and what it says, keeps and goes on with afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import SCRIPTED_CONFIG, Daemon, cli, running, start, write_home

CANARY = "sk-canary-5b1f0c77"
DRAIN = "[daemon]\ndrain_s = {drain_s}\n"


def talk(words: int, tokens_per_s: float) -> list[dict[str, Any]]:
    return [{"reply": "word " * words, "tokens_per_s": tokens_per_s}]


async def first_delta(daemon: Daemon, turn: str) -> None:
    async for item in daemon.follow(turn):
        if item["type"] == "delta" and item["kind"] == "text":
            return
    raise AssertionError("the turn ended without a word")


async def until_stopping(daemon: Daemon) -> None:
    async with asyncio.timeout(60):
        while (await daemon.get("/readyz"))["ok"]:
            await asyncio.sleep(0.02)


# --- stopping -----------------------------------------------------------------------------------


async def test_sigterm_lets_running_steps_finish_and_exits_with_zero(tmp_path: Path) -> None:
    home = write_home(tmp_path, talk(40, 15), DRAIN.format(drain_s=60) + SCRIPTED_CONFIG)
    async with running(home) as daemon:
        turn = await daemon.start_turn("go")
        await first_delta(daemon, turn)
        daemon.process.terminate()
        assert await asyncio.wait_for(daemon.process.wait(), 60) == 0
        assert not daemon.socket.exists()
        assert "Traceback" not in daemon.log
    async with running(home) as daemon:
        shown = await daemon.get(f"/api/turns/{turn}")
        assert (shown["status"], shown["text"]) == ("done", "word " * 40)
        recorded = await daemon.get(f"/api/turns/{turn}/explain")
        assert "turn.resumed" not in [record["type"] for record in recorded["records"]]


async def test_a_turn_that_outlasts_the_drain_continues_after_the_restart(tmp_path: Path) -> None:
    home = write_home(tmp_path, talk(60, 20), DRAIN.format(drain_s=0.2) + SCRIPTED_CONFIG)
    async with running(home) as daemon:
        turn = await daemon.start_turn("go")
        await first_delta(daemon, turn)
        daemon.process.terminate()
        assert await asyncio.wait_for(daemon.process.wait(), 60) == 0
        assert "Traceback" not in daemon.log
    async with running(home) as daemon:
        ended = await daemon.ended(turn)
        assert (ended["type"], ended["text"]) == ("turn.completed", "word " * 60)


async def test_while_draining_new_turns_are_refused_and_a_second_sigterm_shortens(
    tmp_path: Path,
) -> None:
    home = write_home(tmp_path, talk(200, 10), DRAIN.format(drain_s=60) + SCRIPTED_CONFIG)
    async with running(home) as daemon:
        turn = await daemon.start_turn("go")
        await first_delta(daemon, turn)
        daemon.process.terminate()
        await until_stopping(daemon)
        status, problem = await daemon.post("/api/turns", {"agent": "assistant", "text": "more"})
        assert (status, problem["code"]) == (409, "conflict")
        assert "stopping" in problem["detail"]
        daemon.process.terminate()
        assert await asyncio.wait_for(daemon.process.wait(), 40) == 0, "well before drain_s"
        assert "Traceback" not in daemon.log
    async with running(home) as daemon:
        assert (await daemon.get(f"/api/turns/{turn}"))["status"] in ("queued", "running")


async def test_a_stop_waits_for_no_person_and_tells_followers_that_the_turn_goes_on(
    tmp_path: Path,
) -> None:
    config = DRAIN.format(drain_s=60) + SCRIPTED_CONFIG + 'tools = ["shell"]\n'
    script = [
        {"match": "^make", "tool_calls": [{"name": "shell", "arguments": {"command": "true"}}]},
        {"reply": "made"},
    ]
    home = write_home(tmp_path, script, config)
    async with running(home) as daemon:
        turn = await daemon.start_turn("make it")
        async for item in daemon.follow(turn):
            if item["type"] == "approval.asked":
                question = item["approval_id"]
                break
        following = asyncio.create_task(daemon.ended(turn))
        watching = asyncio.create_task(cli(home, "ask", "assistant", "make another"))
        async with asyncio.timeout(60):
            while len((await daemon.get("/api/approvals"))["approvals"]) < 2:
                await asyncio.sleep(0.02)
        daemon.process.terminate()
        assert await asyncio.wait_for(daemon.process.wait(), 40) == 0
        assert (await following)["type"] == "approval.asked"
        code, _, err = await watching
        assert code == 3
        assert "goes on when it is back" in err
    async with running(home) as daemon:
        await daemon.post(f"/api/approvals/{question}", {"decision": "allow_once"})
        assert (await daemon.ended(turn))["text"] == "made"


# --- systemd ------------------------------------------------------------------------------------


@pytest.fixture
def notified(tmp_path: Path) -> Iterator[socket.socket]:
    """Where systemd would listen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        yield listener


async def heard(listener: socket.socket, word: str) -> None:
    async with asyncio.timeout(60):
        while True:
            data = await asyncio.get_running_loop().sock_recv(listener, 4096)
            if word in data.decode().splitlines():
                return


async def test_systemd_hears_ready_then_heartbeats_then_stopping(
    notified: socket.socket, tmp_path: Path
) -> None:
    home = write_home(tmp_path / "home", [{"reply": "ok"}])
    address = str(tmp_path / "notify")
    async with running(home, NOTIFY_SOCKET=address, WATCHDOG_USEC="1000000") as daemon:
        await heard(notified, "READY=1")
        for _ in range(3):
            await heard(notified, "WATCHDOG=1")
        daemon.process.terminate()
        await heard(notified, "STOPPING=1")
        assert await daemon.process.wait() == 0


# --- models that crash --------------------------------------------------------------------------


async def test_three_crashes_in_a_minute_open_the_breaker_and_the_reason_is_shown(
    tmp_path: Path,
) -> None:
    home = write_home(tmp_path, [{"match": "bad", "fault": "crash"}, {"reply": "ok"}])
    async with running(home) as daemon:
        for _ in range(2):
            failed = await daemon.ask("bad")
            assert failed["type"] == "turn.failed"
        assert "crash" in failed["error"]["message"], failed["error"]
        model = (await daemon.get("/api/models"))["models"][0]
        assert model["state"] == "broken"
        assert "scripted crash" in model["detail"] or "script said crash" in model["detail"]
        status = await daemon.get("/api/status")
        assert status["state"] == "degraded"
        assert any("main" in reason and "crash" in reason for reason in status["reasons"])
        for command in ("models", "status"):
            code, out, _ = await cli(home, command)
            assert code == 0
            assert "script said crash" in " ".join(out.split()), out
        refused = await daemon.ask("good")
        assert refused["type"] == "turn.failed"
        assert "3 times in a minute" in refused["error"]["message"], refused["error"]
        assert daemon.process.returncode is None


@pytest.fixture
def model_home(tmp_path: Path, default_model_path: Path) -> Path:
    """A home with the real small model."""
    models = tmp_path / "models"
    models.mkdir()
    (models / default_model_path.name).symlink_to(default_model_path)
    (tmp_path / "config.toml").write_text(
        '[models.small]\nengine = "llamacpp"\nfile = "smollm2-135m-instruct-q4_1"\n'
        "context_window = 2048\nslots = 1\nsampling = { temperature = 0 }\n"
        '[agents.assistant]\nmodels = ["small"]\nsampling = { max_tokens = 200 }\n'
    )
    return tmp_path


def children(pid: int) -> list[int]:
    """Processes started by any thread of this one."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def workers(pid: int) -> list[int]:
    """Those of them that hold a model."""
    return [
        child
        for child in children(pid)
        if b"llamacpp.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


@pytest.mark.model
async def test_a_worker_killed_in_mid_generation_costs_one_retry_and_never_the_daemon(
    model_home: Path,
) -> None:
    async with running(model_home) as daemon:
        pid = (await daemon.get("/api/status"))["pid"]
        turn = await daemon.start_turn("Tell me a long story about the sea.")
        await first_delta(daemon, turn)
        (worker,) = workers(daemon.process.pid)
        os.kill(worker, signal.SIGKILL)
        kinds = [item["type"] async for item in daemon.follow(turn)]
        assert kinds.count("step.failed") == 1
        assert kinds[-1] == "turn.completed"
        (after,) = workers(daemon.process.pid)
        assert after != worker
        assert (await daemon.get("/api/status"))["pid"] == pid == daemon.process.pid
        records = (await daemon.get(f"/api/turns/{turn}/explain"))["records"]
        failed = next(record for record in records if record["type"] == "step.failed")
        assert "signal 9" in failed["error"]["message"]


@pytest.mark.model
@pytest.mark.slow
async def test_a_worker_that_is_stopped_is_noticed_and_its_turn_is_made_again(
    model_home: Path,
) -> None:
    async with running(model_home) as daemon:
        turn = await daemon.start_turn("Tell me a long story about the sea.")
        await first_delta(daemon, turn)
        (worker,) = workers(daemon.process.pid)
        os.kill(worker, signal.SIGSTOP)
        async with asyncio.timeout(60):
            assert (await daemon.ended(turn))["type"] == "turn.completed"
        assert not Path(f"/proc/{worker}").exists()


# --- what must not be in a process --------------------------------------------------------------


@pytest.mark.model
async def test_the_daemon_never_holds_a_model_library_and_no_secret_leaves_it(
    model_home: Path,
) -> None:
    with (model_home / "config.toml").open("a") as file:
        file.write('tools = ["shell"]\n')
    async with running(model_home, ANTHROPIC_API_KEY=CANARY, APPLIANCE_CANARY=CANARY) as daemon:
        turn = await daemon.start_turn("Say hello.")
        await first_delta(daemon, turn)
        (worker,) = workers(daemon.process.pid)
        for child in children(daemon.process.pid):
            environment = Path(f"/proc/{child}/environ").read_bytes()
            assert CANARY.encode() not in environment
        assert "libllama" in Path(f"/proc/{worker}/maps").read_text()
        mapped = Path(f"/proc/{daemon.process.pid}/maps").read_text()
        for library in ("llama_cpp", "libllama", "libggml", "torch", "lancedb", "langgraph"):
            assert library not in mapped, f"the daemon has {library} mapped"
        await daemon.ended(turn)
        shown = await daemon.get("/api/config")
        assert CANARY not in str(shown)
    await nowhere_in(model_home)


async def test_a_secret_is_in_no_tools_environment_and_in_no_file(tmp_path: Path) -> None:
    tools = (
        SCRIPTED_CONFIG
        + 'tools = ["shell"]\napprovals = [{ tool = "shell", decision = "allow" }]\n'
    )
    look = "env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'"
    home = write_home(tmp_path, [
        {"match": "^look", "tool_calls": [{"name": "shell", "arguments": {"command": look}}]},
        {"reply": "looked"},
    ], tools)  # fmt: skip
    async with running(home, ANTHROPIC_API_KEY=CANARY, APPLIANCE_CANARY=CANARY) as daemon:
        turn = (await daemon.ask("look"))["turn"]
        records = (await daemon.get(f"/api/turns/{turn}/explain"))["records"]
        result = next(record for record in records if record["type"] == "tool.completed")
        assert not result["result"].get("is_error"), result
        assert "PATH=" in str(result["result"]), result
        assert CANARY not in str(records)
    await nowhere_in(home)


async def nowhere_in(home: Path) -> None:
    """The canary is in no file below a home: journal, logs, workspaces, parked caches."""
    for path in home.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = await asyncio.to_thread(path.read_bytes)
            assert CANARY.encode() not in content, f"the secret is in {path}"


async def test_a_kill_in_mid_stream_loses_no_accepted_turn(tmp_path: Path) -> None:
    home = write_home(tmp_path, talk(16, 8))
    daemon = await start(home)
    try:
        turns = [await daemon.start_turn(f"turn {n}") for n in range(12)]
        await first_delta(daemon, turns[-1])
    finally:
        daemon.kill()
        await daemon.process.wait()
        await daemon.session.close()
    async with running(home) as daemon:
        for turn in turns:
            assert (await daemon.ended(turn))["text"] == "word " * 16
