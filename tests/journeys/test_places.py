"""What a private agent leaves in a shared place stays private, also when nobody heard of it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import Daemon, running
from tests.fakes.claude.running import Claude, claude_process, talking_to
from tests.fakes.claude.server import END
from tests.journeys.cloud import LOCAL_REPLY, write_cloud_home

CANARY = "CANARY-51ab77"
FAKES = Path(__file__).parents[1] / "fakes" / "mcp"

AGENTS = """
[agents.lead]
models = ["claude", "local"]
policy = "cloud-first"
label = "public"
tools = ["ask_agent", "read_file"]
mcp = ["board"]
delegates_to = ["vault"]
approvals = [{{ tool = "*", decision = "allow" }}]

[agents.vault]
models = ["local"]
policy = "local-only"
label = "private"
tools = ["write_file", "shell"]
mcp = ["board"]
approvals = [
    {{ tool = "shell", decision = "ask" }},
    {{ tool = "*", decision = "allow" }},
]

[mcp.board]
command = ["{python}", "{server}", "good", "{folder}"]
paths = ["{folder}"]
label = "public"
"""


def write(path: str) -> dict[str, Any]:
    return {"name": "write_file", "arguments": {"path": path, "content": CANARY}}


SCRIPT = [
    {"match": "^keep it$", "tool_calls": [write("kept.txt")]},
    {
        "match": "Created kept.txt",
        "tool_calls": [{"name": "shell", "arguments": {"command": "true"}}],
    },
    {"match": "^post it$", "tool_calls": [{"name": "board__act", "arguments": {"n": 1}}]},
    {"reply": LOCAL_REPLY},
]


@pytest.fixture
async def claude(tmp_path: Path) -> AsyncIterator[Claude]:
    with claude_process(tmp_path) as url:
        async with talking_to(url, tmp_path / "claude-requests.log") as server:
            yield server


@pytest.fixture
async def daemon(claude: Claude, tmp_path: Path) -> AsyncIterator[Daemon]:
    folder = tmp_path / "board"
    folder.mkdir()
    more = AGENTS.format(python=sys.executable, server=FAKES / "server.py", folder=folder)
    home = write_cloud_home(tmp_path / "home", claude.url, more=more)
    (home / "script.json").write_text(json.dumps(SCRIPT))
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        yield daemon


async def test_a_file_of_a_private_agent_whose_asker_was_cancelled_never_leaves(
    daemon: Daemon, claude: Claude
) -> None:
    order = json.dumps({"agent": "vault", "prompt": "keep it"})
    turn = await daemon.start_turn(f"ORDER ask_agent {order}", "lead")
    async with asyncio.timeout(60):
        while not (await daemon.get("/api/approvals"))["approvals"]:
            await asyncio.sleep(0.02)
    await daemon.post(f"/api/turns/{turn}/cancel")
    ended = await daemon.ended(turn)
    assert ended["type"] == "turn.cancelled"
    (kept,) = (daemon.home / "state" / "workspaces").glob("*/kept.txt")
    assert kept.read_text() == CANARY

    path = json.dumps({"path": "kept.txt"})
    read = await daemon.ask(f"ORDER read_file {path}", "lead", session=ended["session"])
    assert read["text"] == LOCAL_REPLY, "the step after the file was read stays here"
    log = claude.log.read_bytes()
    assert b"ORDER read_file" in log, "the step before it did go to the cloud"
    assert CANARY.encode() not in log


async def test_what_a_server_was_given_in_private_it_gives_back_as_private(daemon: Daemon) -> None:
    look = "ORDER board__look " + json.dumps({"n": 1})
    assert (await daemon.ask(look, "lead"))["text"].endswith(END)
    await daemon.ask("post it", "vault")
    assert (await daemon.ask(look, "lead"))["text"] == LOCAL_REPLY
