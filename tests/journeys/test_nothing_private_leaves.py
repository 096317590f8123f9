"""Ways in which something private could be overlooked, each with a canary to look for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import Daemon, running
from tests.fakes.claude.canaries import forms
from tests.fakes.claude.running import Claude, claude_process, talking_to
from tests.journeys.cloud import write_cloud_home
from tests.journeys.test_mcp import mcp_command

CANARY = "CANARY-5f1e0c"
AGENTS = """
[agents.open]
models = ["claude", "local"]
policy = "cloud-first"
label = "public"
tools = ["read_file", "write_file", "list_files", "ask_agent"]
delegates_to = ["clerk"]
approvals = [{ tool = "*", decision = "allow" }]

[agents.clerk]
models = ["local"]
policy = "local-only"
label = "public"
"""
RULES = """
[tools]
labels = [{ path = "vault", label = "private" }, { path = "*.pem", label = "private" }]
"""
SCRIPT = [
    {"match": "^tell$", "reply": f"The word is {CANARY}."},
    {
        "match": r'ORDER ask_agent \{"agent": "clerk", "prompt": "(.*?)"\}',
        "tool_calls": [{"name": "ask_agent", "arguments": {"agent": "clerk", "prompt": r"\1"}}],
    },
    {
        "match": r'ORDER read_file \{"path": "(.*?)"\}',
        "tool_calls": [{"name": "read_file", "arguments": {"path": r"\1"}}],
    },
    {"reply": "A local answer. [the end]"},
]


@pytest.fixture(scope="module")
def claude_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with claude_process(tmp_path_factory.mktemp("claude")) as url:
        yield url


@pytest.fixture
async def claude(claude_url: str, tmp_path: Path) -> AsyncIterator[Claude]:
    async with talking_to(claude_url, tmp_path / "claude-requests.log") as server:
        yield server


def home_of(tmp_path: Path, claude: Claude, more: str = "", agents: str = AGENTS) -> Path:
    home = write_cloud_home(tmp_path / "home", claude.url, more=agents + more)
    (home / "script.json").write_text(json.dumps(SCRIPT))
    return home


def order(tool: str, **arguments: str) -> str:
    return f"ORDER {tool} {json.dumps(arguments)}"


def workspace_of(home: Path, session: str) -> Path:
    folder = home / "state" / "workspaces" / session
    folder.mkdir(parents=True, exist_ok=True)
    return folder


async def edited(daemon: Daemon, old: str, new: str) -> None:
    """Save config.toml with a part replaced, and wait until it is in force."""
    revision = (await daemon.get("/api/config"))["revision"]
    path = daemon.home / "config.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    async with asyncio.timeout(60):
        while (await daemon.get("/api/config"))["revision"] == revision:
            await asyncio.sleep(0.01)


def assert_nothing_left(claude: Claude, home: Path) -> None:
    kept = b"".join(path.read_bytes() for path in (home / "state").glob("*.db*"))
    assert CANARY.encode() in kept, "it was not there to be lost"
    sent = claude.log.read_bytes()
    assert [form for form in forms(CANARY) if form in sent] == []


async def ended(daemon: Daemon, text: str, session: str, **more: Any) -> str:
    done = await daemon.ask(text, "open", session=session, **more)
    assert done["type"] == "turn.completed", done
    return str(done["text"])


async def new_session(daemon: Daemon, **more: str) -> str:
    status, made = await daemon.post("/api/sessions", {"agent": "open", **more})
    assert status == 201, made
    return str(made["id"])


async def test_a_session_called_private_is_private_in_every_turn(
    claude: Claude, tmp_path: Path
) -> None:
    home = home_of(tmp_path, claude)
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        session = await new_session(daemon, label="private")
        await ended(daemon, f"Keep {CANARY}.", session)
        assert "Reply" in await ended(daemon, "Public words.", await new_session(daemon))
    assert_nothing_left(claude, home)


async def test_an_agent_that_becomes_private_takes_its_sessions_along(
    claude: Claude, tmp_path: Path
) -> None:
    home = home_of(tmp_path, claude)
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        session = await new_session(daemon)
        await ended(daemon, f"Keep {CANARY}.", session, policy="local-only")
        agent = '[agents.open]\nmodels = ["claude", "local"]\npolicy = "cloud-first"\nlabel = '
        await edited(daemon, f'{agent}"public"', f'{agent}"private"')
        await ended(daemon, "What did I say?", session)
    assert_nothing_left(claude, home)


@pytest.mark.parametrize(
    ("first", "rule"),
    [
        (
            order("read_file", path="vault/a.txt"),
            'labels = [{ path = "vault", label = "private" }]',
        ),
        (
            order("read_file", path="vault/a.txt"),
            'labels = [{ tool = "read_*", label = "private" }]',
        ),
    ],
)
async def test_a_rule_made_later_holds_for_what_was_read_before(
    claude: Claude, tmp_path: Path, first: str, rule: str
) -> None:
    home = home_of(tmp_path, claude, "\n[tools]\nlabels = []\n")
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        session = await new_session(daemon)
        (workspace_of(home, session) / "vault").mkdir()
        (workspace_of(home, session) / "vault" / "a.txt").write_text(CANARY)
        await ended(daemon, first, session, policy="local-only")
        await edited(daemon, "labels = []", rule)
        await ended(daemon, "What did it say?", session)
    assert_nothing_left(claude, home)


async def test_what_an_agent_said_before_it_became_private_stays_here_too(
    claude: Claude, tmp_path: Path
) -> None:
    home = home_of(tmp_path, claude)
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        session = await new_session(daemon)
        asked = order("ask_agent", agent="clerk", prompt="tell")
        await ended(daemon, asked, session, policy="local-only")
        agent = '[agents.clerk]\nmodels = ["local"]\npolicy = "local-only"\nlabel = '
        await edited(daemon, f'{agent}"public"', f'{agent}"private"')
        await ended(daemon, "What did it say?", session)
    assert_nothing_left(claude, home)


async def test_the_names_in_a_private_folder_are_private_and_others_are_not(
    claude: Claude, tmp_path: Path
) -> None:
    home = home_of(tmp_path, claude, RULES)
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        session, other = await new_session(daemon), await new_session(daemon)
        (workspace_of(home, session) / "vault").mkdir()
        (workspace_of(home, session) / "vault" / f"{CANARY}.txt").write_text("x")
        (workspace_of(home, other) / "server.pem").write_text("x")
        assert "Reply" not in await ended(daemon, order("list_files", path="."), session)
        assert "Reply" in await ended(daemon, order("list_files", path="."), other)
    assert_nothing_left(claude, home)


async def test_what_a_private_server_says_of_its_tools_stays_here(
    tmp_path: Path, claude: Claude
) -> None:
    """Its name alone tells: it is in the names of its tools."""
    folder = tmp_path / "served"
    folder.mkdir()
    command = mcp_command("good", folder)
    servers = "".join(
        f'\n[mcp.{name}]\ncommand = {command}\npaths = ["{folder}"]\nlabel = "{label}"\n'
        for name, label in (("vault7", "private"), ("shelf7", "internal"))
    )
    opened = AGENTS.replace("[agents.open]", '[agents.open]\nmcp = ["vault7", "shelf7"]')
    home = home_of(tmp_path, claude, servers, opened)
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        assert "Reply" in await ended(daemon, "Public words.", await new_session(daemon))
    sent = claude.log.read_text()
    assert "shelf7__look" in sent, "the tools of the other server do go there"
    assert "vault7" not in sent
