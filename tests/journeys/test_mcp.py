"""An MCP server through the real daemon: used, killed in mid-call, back; and calls in doubt."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from tests.daemons import REPOSITORY, Daemon, cli, running, write_home
from tests.journeys.test_tools_over_the_socket import asked, call

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
command = {command}
paths = ["{folder}"]
"""

SCRIPT = [
    {"match": "^look [a-z]", "tool_calls": [call("fake__look", n=1)]},
    {"match": "^act [a-z]", "tool_calls": [call("fake__act", n=1)]},
    {"match": "Nobody knows whether", "reply": "I leave it"},
    {"match": "look 1", "reply": "seen"},
    {"match": "act 1", "reply": "acted"},
]


def write_mcp_home(home: Path, folder: Path, behaviour: str) -> Path:
    folder.mkdir()
    command = mcp_command(behaviour, folder)
    return write_home(home, SCRIPT, CONFIG.format(command=command, folder=folder))


def mcp_command(behaviour: str, folder: Path) -> str:
    """The array of `[mcp.fake] command`."""
    server = REPOSITORY / "tests" / "fakes" / "mcp" / "server.py"
    return json.dumps([sys.executable, str(server), behaviour, str(folder)])


async def in_doubt(daemon: Daemon, home: Path) -> tuple[str, dict[str, Any]]:
    """A turn whose call lost its server in the middle, and the question about it."""
    turn = await daemon.start_turn("act now")
    question = await asked(daemon)
    code, out, err = await cli(home, "turns", "--in-doubt", "--json")
    assert code == 0, err
    assert [(row["id"], row["status"]) for row in json.loads(out)] == [(turn, "in_doubt")]
    assert question["reason"] == "in_doubt"
    return turn, question


async def test_a_reading_call_survives_the_death_of_its_server(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    home = write_mcp_home(tmp_path / "home", folder, "kill_in_call")
    async with running(home) as daemon:
        first = await daemon.ask("look there")
        assert first.get("text") == "seen", first
        (folder / "armed").touch()
        async with asyncio.timeout(60):
            assert (await daemon.ask("look again"))["text"] == "seen"
        assert not (folder / "armed").exists()
        code, out, err = await cli(home, "mcp", "list", "--json")
        assert code == 0, err
        (server,) = json.loads(out)
        assert server["state"] == "ready"
        assert server["tools"] == ["fake__act", "fake__look"]


async def test_a_call_in_doubt_is_run_again_once_when_a_person_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    home = write_mcp_home(tmp_path / "home", folder, "kill_in_call")
    async with running(home) as daemon:
        first = await daemon.ask("look there")
        assert first.get("text") == "seen", first
        (folder / "armed").touch()
        turn, question = await in_doubt(daemon, home)
        before = (folder / "calls").read_text().count("\n")
        await daemon.post(f"/api/approvals/{question['id']}", {"decision": "allow_once"})
        assert (await daemon.ended(turn))["text"] == "acted"
        assert (folder / "calls").read_text().count("\n") == before + 1


async def test_a_call_in_doubt_survives_a_restart_and_a_refusal_is_told_to_the_model(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "server"
    home = write_mcp_home(tmp_path / "home", folder, "kill_in_call")
    async with running(home) as daemon:
        first = await daemon.ask("look there")
        assert first.get("text") == "seen", first
        (folder / "armed").touch()
        turn, question = await in_doubt(daemon, home)
        before = (folder / "calls").read_text()
        daemon.kill()
        await daemon.process.wait()
    async with running(home) as daemon:
        assert (await asked(daemon))["id"] == question["id"]
        await daemon.post(f"/api/approvals/{question['id']}", {"decision": "reject_once"})
        assert (await daemon.ended(turn))["text"] == "I leave it"
    assert (folder / "calls").read_text() == before


async def test_changed_tools_run_only_after_a_person_accepted_them(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    home = write_mcp_home(tmp_path / "home", folder, "changed")
    async with running(home) as daemon:
        first = await daemon.ask("look there")
        assert first.get("text") == "seen", first
        code, _, err = await cli(home, "mcp", "accept", "fake")
        assert code == 2 and "nothing" in err
    (folder / "flip").touch()
    async with running(home) as daemon:
        await daemon.ask("look again")
        (server,) = (await daemon.get("/api/mcp"))["servers"]
        assert server["state"] == "changed"
        code, out, err = await cli(home, "mcp", "accept", "fake")
        assert code == 0, err
        assert "fake__look" in out
        assert (await daemon.ask("look once more"))["text"] == "seen"
