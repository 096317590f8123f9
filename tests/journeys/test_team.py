"""The shipped team on a scripted model: what each may do, what none may, and what never leaves."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from tests.daemons import REPOSITORY, Daemon, cli, running
from tests.fakes.claude.running import claude_process
from tests.journeys.test_tools_over_the_socket import asked, call

LOCAL = {"engine": "scripted", "script": "script.json", "slots": 8, "context_window": 16_384}


def write_team(home: Path, script: list[dict[str, Any]], claude_url: str = "") -> Path:
    """The shipped configuration, with a script in place of its local model and, if told so, a
    stand-in in place of Claude."""
    home.mkdir(parents=True, exist_ok=True)
    config = tomlkit.parse((REPOSITORY / "config.toml").read_text())
    config["models"]["smollm2"] = LOCAL  # type: ignore[index]
    config["routing"]["explore_share"] = 0.0  # type: ignore[index]
    if claude_url:
        config["models"]["claude"]["base_url"] = claude_url  # type: ignore[index]
    (home / "config.toml").write_text(tomlkit.dumps(config))
    (home / "script.json").write_text(json.dumps(script))
    return home


def workspaces(home: Path) -> list[Path]:
    return sorted((home / "state" / "workspaces").iterdir())


async def results(daemon: Daemon, turn: str) -> list[dict[str, Any]]:
    items = [item async for item in daemon.follow(turn)]
    return [item["result"] for item in items if item["type"] == "tool.completed"]


async def test_backend_writes_where_it_may_and_not_what_qa_and_cto_own(tmp_path: Path) -> None:
    home = write_team(tmp_path, [
        {"match": "^build", "tool_calls": [
            call("write_file", path="src/app.py", content="print('built')\n"),
            call("write_file", path="tests/test_app.py", content="def test(): pass\n"),
            call("write_file", path="spec/app.md", content="anything goes\n"),
        ]},
        {"reply": "it is built"},
    ])  # fmt: skip
    async with running(home) as daemon:
        code, out, err = await cli(home, "ask", "backend", "build it")
        assert code == 0, err
        assert "it is built" in out
        turn = (await daemon.get("/api/turns"))["turns"][0]["id"]
        wrote, tests, spec = await results(daemon, turn)
        assert not wrote.get("is_error")
        assert tests["is_error"] and "read-only" in str(tests)
        assert spec["is_error"] and "read-only" in str(spec)
    (workspace,) = workspaces(home)
    assert (workspace / "src" / "app.py").read_text() == "print('built')\n"
    assert not list(workspace.glob("tests/*")) and not list(workspace.glob("spec/*"))


async def test_a_shell_of_backend_is_asked_for_and_held_to_the_same_paths(tmp_path: Path) -> None:
    command = "mkdir -p src; echo x > src/a; echo x > tests/a; mv tests old; echo the end"
    home = write_team(tmp_path, [
        {"match": "^push", "tool_calls": [call("shell", command="true && git push origin")]},
        {"match": "^run", "tool_calls": [call("shell", command=command)]},
        {"reply": "done"},
    ])  # fmt: skip
    async with running(home) as daemon:
        pushed = await daemon.start_turn("push it", "backend")
        (refused,) = await results(daemon, pushed)
        assert refused["is_error"] and "may not call shell" in str(refused)
        turn = await daemon.start_turn("run it", "backend")
        question = await asked(daemon)
        assert command in question["summary"]
        await daemon.post(f"/api/approvals/{question['id']}", {"decision": "allow_once"})
        (result,) = await results(daemon, turn)
        assert "the end" in str(result)
    assert not list(home.glob("state/workspaces/*/tests/*"))
    assert [path.read_text() for path in home.glob("state/workspaces/*/src/a")] == ["x\n"]


async def test_cto_hands_work_to_backend_in_the_same_workspace_and_runs_nothing(
    tmp_path: Path,
) -> None:
    home = write_team(tmp_path, [
        {"match": "^make a greeting", "tool_calls": [
            call("write_file", path="spec/greeting.md", content="It says hello.\n"),
            call("write_file", path="src/greeting.py", content="no\n"),
            call("shell", command="id"),
            call("ask_agent", agent="backend", prompt="implement spec/greeting.md"),
        ]},
        {"match": "^implement", "tool_calls": [call("read_file", path="spec/greeting.md")]},
        {"match": "It says hello", "times": 1, "tool_calls": [
            call("write_file", path="src/greeting.py", content="print('hello')\n")]},
        {"match": "(?i)wrote|bytes", "times": 1, "reply": "backend wrote it"},
        {"match": "backend wrote it", "reply": "it greets"},
        {"reply": "what?"},
    ])  # fmt: skip
    async with running(home) as daemon:
        turn = await daemon.start_turn("make a greeting", "cto")
        told = await results(daemon, turn)
        assert [bool(result.get("is_error")) for result in told] == [False, True, True, False], told
        assert "no tool 'shell'" in str(told[2])
        turns = (await daemon.get("/api/turns"))["turns"]
        child = next(row for row in turns if row["agent"] == "backend")
        assert child["parent_turn"] == turn
        parent = await daemon.get(f"/api/turns/{turn}")
        assert parent["text"] == "it greets"
    (workspace,) = workspaces(home)
    assert (workspace / "spec" / "greeting.md").read_text() == "It says hello.\n"
    assert (workspace / "src" / "greeting.py").read_text() == "print('hello')\n"


async def test_what_qa_saw_is_private_and_keeps_whoever_asked_it_on_this_machine(
    tmp_path: Path,
) -> None:
    """cto would go to the cloud for the answer; qa's label came back with what it said."""
    canary = "canary-7d1f"
    home = tmp_path / "home"
    with claude_process(tmp_path / "claude") as url:
        write_team(home, [
            {"match": "^review", "tool_calls": [
                call("ask_agent", agent="qa", prompt="what does it print?")]},
            {"match": "^what does", "reply": f"It prints {canary}."},
            {"match": canary, "reply": "reviewed here"},
        ], url)  # fmt: skip
        async with running(home, ANTHROPIC_API_KEY="stand-in-key") as daemon:
            ended = await daemon.ask("review it", "cto", model="smollm2")
            assert ended["text"] == "reviewed here", ended
            detail = await daemon.get(f"/api/turns/{ended['turn']}")
            assert detail["label"] == "private"
            again = await daemon.ask(
                f"and say {canary} in the cloud", "cto", session=detail["session"],
                policy="cloud-only",
            )  # fmt: skip
            assert again["type"] == "turn.failed", again
            assert again["error"]["code"] in ("refused", "egress_denied")
        assert canary not in "".join(
            path.read_text(errors="replace")
            for path in (tmp_path / "claude").rglob("*")
            if path.is_file()
        )
    assert sent(home) == 0


def sent(home: Path) -> int:
    """Requests that left the machine, by the journal's own account."""
    (path,) = (home / "state").glob("*.db")
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        found = connection.execute("SELECT count(*) FROM event WHERE kind = 'egress.sent'")
        return int(found.fetchone()[0])


@pytest.mark.parametrize("agent", ["assistant", "cto", "backend", "frontend", "qa"])
def test_no_agent_of_the_team_may_do_everything(agent: str) -> None:
    entry = tomlkit.parse((REPOSITORY / "config.toml").read_text())["agents"][agent]  # type: ignore[index]
    rules = entry.get("approvals", [])
    assert not [rule for rule in rules if rule["tool"] == "shell" and rule["decision"] == "allow"]
    assert entry["read_only"] or not entry["tools"]
