"""A real MCP server over streamable HTTP: used, killed in mid-call, away, back, asking."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import REPOSITORY, running, write_home
from tests.journeys.test_mcp_questions import asked
from tests.journeys.test_tools_over_the_socket import call

CONFIG = """
[models.main]
engine = "scripted"
script = "script.json"
slots = 8

[agents.assistant]
models = ["main"]
policy = "local-only"
mcp = ["fake"]
approvals = [{{ tool = "fake__*", decision = "allow" }}]

[mcp.fake]
url = "http://127.0.0.1:{port}/mcp"
key_env = "FAKE_TOKEN"
timeout_s = 20
"""

SCRIPT: list[dict[str, Any]] = [
    {"match": "^look [a-z]", "tool_calls": [call("fake__look", n=1)]},
    {"match": "^act [a-z]", "tool_calls": [call("fake__act", n=1)]},
    {"match": "^choose", "tool_calls": [call("fake__choose")]},
    {"match": "^think", "tool_calls": [call("fake__think")]},
    {"match": r"^2\+2\?$", "reply": "four"},
    {"match": "look 1", "reply": "seen"},
    {"match": "act 1", "reply": "acted"},
    {"match": "accept left", "reply": "left it is"},
    {"match": "the model said four", "reply": "it heard four"},
    {"match": "Nobody knows whether", "reply": "I leave it"},
    {"match": "did not run|not available", "reply": "it is away"},
]
TOKEN = "a-token-of-the-server"


class Served:
    """The server as a program, on the same port after each start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: asyncio.subprocess.Process | None = None

    @property
    def port(self) -> int:
        return int((self.folder / "port").read_text())

    async def start(self) -> None:
        program = REPOSITORY / "tests" / "fakes" / "mcp" / "http_server.py"
        with (self.folder / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, str(program), str(self.folder), TOKEN, stdout=log, stderr=log
            )
        async with asyncio.timeout(30):
            while not await self._answers():
                assert self._process.returncode is None, (self.folder / "log").read_text()
                await asyncio.sleep(0.05)

    async def died(self) -> None:
        assert self._process is not None
        async with asyncio.timeout(30):
            await self._process.wait()

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            os.kill(self._process.pid, signal.SIGKILL)
            await self._process.wait()

    async def _answers(self) -> bool:
        if not (self.folder / "port").exists():
            return False
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True

    def lines(self, name: str) -> int:
        path = self.folder / name
        return path.read_text().count("\n") if path.exists() else 0


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    folder = tmp_path / "server"
    folder.mkdir()
    server = Served(folder)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def serving(tmp_path: Path, served: Served, token: str = TOKEN) -> AsyncIterator[Any]:
    home = write_home(tmp_path / "home", SCRIPT, CONFIG.format(port=served.port))
    async with running(home, FAKE_TOKEN=token) as daemon:
        yield daemon


async def test_its_tools_work_with_the_token_of_its_config(tmp_path: Path, served: Served) -> None:
    async with serving(tmp_path, served) as daemon:
        first = await daemon.ask("look there")
        assert first.get("text") == "seen", (first, daemon.log)
        assert (await daemon.ask("act there"))["text"] == "acted"
        assert served.lines("effects") == 1
        (shown,) = (await daemon.get("/api/mcp"))["servers"]
        assert shown["state"] == "ready"
        assert "fake__act" in shown["tools"]
        assert TOKEN not in daemon.log


async def test_a_wrong_token_is_said(tmp_path: Path, served: Served) -> None:
    async with serving(tmp_path, served, token="another") as daemon:
        await daemon.ask("look there")
        (shown,) = (await daemon.get("/api/mcp"))["servers"]
        assert shown["state"] == "failed"
        assert "401" in shown["problem"], shown
        assert served.lines("calls") == 0


async def test_a_server_killed_in_mid_call_is_asked_again_only_for_what_reads(
    tmp_path: Path, served: Served
) -> None:
    async with serving(tmp_path, served) as daemon:
        assert (await daemon.ask("look there"))["text"] == "seen"
        (served.folder / "armed").touch()
        turn = await daemon.start_turn("look again")
        await served.died()
        await served.start()
        ended = await daemon.ended(turn)
        assert ended["type"] == "turn.completed", ended
        assert (await daemon.ask("look once more"))["text"] == "seen"

        (served.folder / "armed").touch()
        before = served.lines("calls")
        turn = await daemon.start_turn("act there")
        await served.died()
        await served.start()
        question = await asked(daemon)
        assert question["reason"] == "in_doubt"
        assert served.lines("calls") == before + 1
        await daemon.post(f"/api/approvals/{question['id']}", {"decision": "reject_once"})
        assert (await daemon.ended(turn))["text"] == "I leave it"
        assert served.lines("effects") == 0


async def test_a_session_that_the_server_forgot_is_opened_again(
    tmp_path: Path, served: Served
) -> None:
    async with serving(tmp_path, served) as daemon:
        assert (await daemon.ask("look there"))["text"] == "seen"
        await served.stop()
        await served.start()
        assert (await daemon.ask("look again"))["text"] == "seen"
        await served.stop()
        await served.start()
        assert (await daemon.ask("act there"))["text"] == "acted"
        assert served.lines("effects") == 1


async def test_a_server_that_is_away_costs_a_sentence(tmp_path: Path, served: Served) -> None:
    async with serving(tmp_path, served) as daemon:
        assert (await daemon.ask("look there"))["text"] == "seen"
        await served.stop()
        ended = await daemon.ask("act there")
        assert ended["type"] == "turn.completed", ended
        assert ended["text"] == "it is away"
        await served.start()
        assert (await daemon.ask("act there"))["text"] == "acted"


async def test_it_asks_a_person_and_a_model_in_mid_call(tmp_path: Path, served: Served) -> None:
    async with serving(tmp_path, served) as daemon:
        turn = await daemon.start_turn("choose")
        question = await asked(daemon)
        assert (question["reason"], question["tool"]) == ("question", "fake")
        body = {"decision": "allow_once", "content": {"which": "left"}}
        status, answered = await daemon.post(f"/api/approvals/{question['id']}", body)
        assert status == 200, answered
        assert (await daemon.ended(turn))["text"] == "left it is"
        assert (await daemon.ask("think"))["text"] == "it heard four"
