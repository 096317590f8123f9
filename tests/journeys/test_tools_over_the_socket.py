"""Agents that act: approvals, standing answers, refusals, delegation; on a scripted model."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import Daemon, cli, running, write_home

CONFIG = """
[models.main]
engine = "scripted"
script = "script.json"
slots = 8

[agents.assistant]
models = ["main"]
policy = "local-only"
tools = ["read_file", "write_file", "shell", "ask_agent", "remember", "recall"]
delegates_to = ["helper"]

[agents.helper]
models = ["main"]
policy = "local-only"
tools = ["read_file"]
"""


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


SHELL = [
    {"match": "^make", "tool_calls": [call("shell", command="echo made >> log.txt; cat log.txt")]},
    {"match": "made", "reply": "it is made"},
    {"match": "refused|not allowed|Nobody answered", "reply": "then not"},
]


async def asked(daemon: Daemon) -> dict[str, Any]:
    """The one question that waits, once it is there."""
    async with asyncio.timeout(60):
        while True:
            found = (await daemon.get("/api/approvals"))["approvals"]
            if found:
                assert len(found) == 1
                return dict(found[0])
            await asyncio.sleep(0.02)


async def test_a_call_waits_for_a_person_across_a_restart_and_runs_once(tmp_path: Path) -> None:
    home = write_home(tmp_path, SHELL, CONFIG)
    async with running(home) as daemon:
        turn = await daemon.start_turn("make it")
        question = await asked(daemon)
        assert "echo made" in question["summary"]
        assert (await daemon.get(f"/api/turns/{turn}"))["status"] == "waiting_approval"
        daemon.kill()
        await daemon.process.wait()
    async with running(home) as daemon:
        assert (await asked(daemon))["id"] == question["id"]
        code, _, err = await cli(home, "approvals", "allow", question["id"])
        assert code == 0, err
        ended = await daemon.ended(turn)
        assert (ended["type"], ended["text"]) == ("turn.completed", "it is made")
        status, again = await daemon.post(
            f"/api/approvals/{question['id']}", {"decision": "reject_once"}
        )
        assert (status, again["status"]) == (200, "allow_once")
    logs = list((home / "state" / "workspaces").glob("*/log.txt"))
    assert [log.read_text() for log in logs] == ["made\n"]


async def test_a_refusal_is_told_to_the_model_and_nothing_runs(tmp_path: Path) -> None:
    home = write_home(tmp_path, SHELL, CONFIG)
    async with running(home) as daemon:
        turn = await daemon.start_turn("make it")
        question = await asked(daemon)
        await daemon.post(f"/api/approvals/{question['id']}", {"decision": "reject_once"})
        assert (await daemon.ended(turn))["text"] == "then not"
        assert not list((home / "state" / "workspaces").glob("*/log.txt"))


async def test_allow_always_is_not_asked_again_for_the_same_call(tmp_path: Path) -> None:
    home = write_home(tmp_path, SHELL, CONFIG)
    async with running(home) as daemon:
        turn = await daemon.start_turn("make it")
        question = await asked(daemon)
        await daemon.post(f"/api/approvals/{question['id']}", {"decision": "allow_always"})
        assert (await daemon.ended(turn))["type"] == "turn.completed"
        again = await daemon.ask("make it again")
        assert again["text"] == "it is made"


async def test_wrong_tools_and_arguments_are_results_and_the_turn_goes_on(tmp_path: Path) -> None:
    home = write_home(tmp_path, [
        {"match": "^bad", "tool_calls": [
            call("no_such_tool"), call("read_file", wrong=1), call("read_file", path="../../x"),
            call("read_file", path="/etc/passwd"), call("read_file", path="missing.txt")]},
        {"reply": "understood"},
    ], CONFIG)  # fmt: skip
    async with running(home) as daemon:
        turn = await daemon.start_turn("bad calls")
        items = [item async for item in daemon.follow(turn)]
        results = [item["result"] for item in items if item["type"] == "tool.completed"]
        assert len(results) == 5
        assert all(result["is_error"] for result in results)
        assert "root:" not in str(results)
        assert items[-1]["text"] == "understood"


async def test_a_model_that_repeats_itself_is_stopped(tmp_path: Path) -> None:
    home = write_home(tmp_path, [{"tool_calls": [call("read_file", path="missing")]}], CONFIG)
    async with running(home) as daemon:
        ended = await daemon.ask("go")
        assert ended["type"] == "turn.failed"
        assert ended["error"]["details"]["limit"] == "same_call_max"


async def test_another_agent_is_asked_in_a_turn_of_its_own(tmp_path: Path) -> None:
    home = write_home(tmp_path, [
        {"match": "^delegate", "tool_calls": [
            call("ask_agent", agent="helper", prompt="what is six times seven")]},
        {"match": "^what is six", "reply": "forty-two"},
        {"match": "forty-two", "reply": "helper says forty-two"},
    ], CONFIG)  # fmt: skip
    config = CONFIG.replace(
        'delegates_to = ["helper"]',
        'delegates_to = ["helper"]\napprovals = [{ tool = "ask_agent", decision = "allow" }]',
    )
    (home / "config.toml").write_text(config)
    async with running(home) as daemon:
        ended = await daemon.ask("delegate this")
        assert ended["text"] == "helper says forty-two"
        turns = (await daemon.get("/api/turns"))["turns"]
        child = next(turn for turn in turns if turn["agent"] == "helper")
        assert child["parent_turn"] == ended["turn"]


HOSTS = CONFIG.replace(
    'tools = ["read_file", "write_file", "shell", "ask_agent", "remember", "recall"]',
    'tools = ["shell", "ask_agent"]\nshell_hosts = ["127.0.0.2"]\n'
    'approvals = [{ tool = "shell", decision = "allow" }]',
)
VISIT = (
    "exec 3<>/dev/tcp/127.0.0.1/3128; "
    "printf 'GET http://{where}/ HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"
)


async def test_a_shell_reaches_the_host_its_agent_may_and_the_audit_tells(tmp_path: Path) -> None:
    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nthe page")
        writer.close()

    server = await asyncio.start_server(page, "127.0.0.2", 0)
    port = server.sockets[0].getsockname()[1]
    shells = [
        {"match": word, "tool_calls": [call("shell", command=f'bash -c "{command}"')]}
        for word, command in (
            ("^one$", VISIT.format(where=f"127.0.0.2:{port}")),
            ("^other$", VISIT.format(where=f"127.0.0.3:{port}")),
        )
    ]
    script = [
        *shells,
        {"match": "the page", "reply": "seen"},
        {"match": "127.0.0.3:.* is not an allowed host", "reply": "refused"},
    ]
    home = write_home(tmp_path, script, HOSTS)
    async with server, running(home) as daemon:
        doctor = await daemon.get("/api/doctor")
        if "bubblewrap works here" not in json.dumps(doctor):
            pytest.skip("a shell reaches hosts under bubblewrap alone")
        assert (await daemon.ask("one"))["text"] == "seen"
        assert (await daemon.ask("other"))["text"] == "refused"
        assert not (home / "run" / "appliance.gate").stat().st_mode & 0o077
