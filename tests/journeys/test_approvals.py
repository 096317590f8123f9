"""Approvals between the question and the deed: what changes meanwhile, who answers, and when."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import Daemon, cli, running, write_home
from tests.journeys.test_tools_over_the_socket import CONFIG, asked, call

SCRIPT: list[dict[str, Any]] = [
    {"match": "^write", "tool_calls": [call("write_file", path="a.txt", content="new\n")]},
    {"match": "^make", "tool_calls": [call("shell", command="echo made >> log.txt; cat log.txt")]},
    {"match": "Created|Replaced|^made", "reply": "done"},
    {"match": "refused|not allowed|Nobody answered", "reply": "then not"},
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_home(tmp_path, SCRIPT, CONFIG)


def workspace(home: Path) -> Path:
    (found,) = (home / "state" / "workspaces").iterdir()
    return found


async def answer(daemon: Daemon, question: dict[str, Any], decision: str) -> dict[str, Any]:
    status, body = await daemon.post(f"/api/approvals/{question['id']}", {"decision": decision})
    assert status == 200, body
    return dict(body)


async def reload(daemon: Daemon, home: Path, old: str, new: str) -> None:
    text = (home / "config.toml").read_text()
    assert old in text
    (home / "config.toml").write_text(text.replace(old, new))
    status, body = await daemon.post("/api/config/reload")
    assert status == 200, body


async def test_a_file_that_changed_since_its_diff_was_shown_is_asked_about_again(
    home: Path,
) -> None:
    async with running(home) as daemon:
        turn = await daemon.start_turn("write it")
        first = await asked(daemon)
        assert "create a.txt" in first["summary"]
        (workspace(home) / "a.txt").write_text("somebody else's\n")
        await answer(daemon, first, "allow_once")
        second = await asked(daemon)
        assert second["id"] != first["id"]
        assert "has changed since" in second["reason"]
        assert "-somebody else's" in second["summary"]
        assert (workspace(home) / "a.txt").read_text() == "somebody else's\n"
        await answer(daemon, second, "allow_once")
        assert (await daemon.ended(turn))["text"] == "done"
        assert (workspace(home) / "a.txt").read_text() == "new\n"


async def test_what_was_forbidden_since_it_was_asked_does_not_run(home: Path) -> None:
    async with running(home) as daemon:
        turn = await daemon.start_turn("make it")
        question = await asked(daemon)
        await reload(
            daemon, home, 'delegates_to = ["helper"]',
            'delegates_to = ["helper"]\napprovals = [{ tool = "shell", decision = "deny" }]',
        )  # fmt: skip
        await answer(daemon, question, "allow_once")
        assert (await daemon.ended(turn))["text"] == "then not"
        assert not (workspace(home) / "log.txt").exists()


async def test_of_many_who_answer_at_once_the_first_is_right_for_all(home: Path) -> None:
    async with running(home) as daemon:
        turn = await daemon.start_turn("make it")
        question = await asked(daemon)
        decisions = ["allow_once", "reject_once"] * 10
        answers = await asyncio.gather(*(answer(daemon, question, each) for each in decisions))
        (status,) = {each["status"] for each in answers}
        ended = await daemon.ended(turn)
        assert ended["text"] == ("done" if status == "allow_once" else "then not")
        kinds = [item["type"] async for item in daemon.follow(turn)]
        assert kinds.count("approval.answered") == 1


async def test_an_answer_that_comes_too_late_changes_nothing(home: Path) -> None:
    (home / "config.toml").write_text(CONFIG + "\n[tools]\napproval_s = 0.5\n")
    async with running(home) as daemon:
        turn = await daemon.start_turn("make it")
        assert (await daemon.ended(turn))["text"] == "then not"
        (row,) = (await daemon.get("/api/approvals", status=""))["approvals"]
        assert (await answer(daemon, row, "allow_once"))["status"] == "expired"
        assert not (workspace(home) / "log.txt").exists()


async def test_a_question_ends_with_its_turn(home: Path) -> None:
    async with running(home) as daemon:
        turn = await daemon.start_turn("make it")
        question = await asked(daemon)
        await daemon.post(f"/api/turns/{turn}/cancel")
        assert (await daemon.ended(turn))["type"] == "turn.cancelled"
        assert (await answer(daemon, question, "allow_always"))["status"] == "ended"
        assert (await daemon.get("/api/grants"))["grants"] == []


async def test_a_standing_answer_is_listed_and_taken_back(home: Path) -> None:
    async with running(home) as daemon:
        turn = await daemon.start_turn("make it")
        question = await asked(daemon)
        code, out, err = await cli(home, "approvals", "show", question["id"])
        assert code == 0, err
        assert "with --always: shell with these very arguments" in out
        await answer(daemon, question, "allow_always")
        await daemon.ended(turn)
        assert (await daemon.ask("make it again"))["text"] == "done"
        code, out, err = await cli(home, "approvals", "standing", "--json")
        assert code == 0, err
        (grant,) = json.loads(out)
        assert (grant["tool"], grant["allow"]) == ("shell", True)
        code, out, err = await cli(home, "approvals", "revoke", grant["id"])
        assert code == 0, err
        await daemon.start_turn("make it once more")
        assert (await asked(daemon))["tool"] == "shell"
    async with running(home) as daemon:
        assert (await daemon.get("/api/grants"))["grants"][0]["revoked_ms"] is not None
        status, _ = await daemon.post("/api/grants/grant_none/revoke")
        assert status == 404


async def test_cancelling_a_turn_cancels_what_it_asked_of_other_agents(tmp_path: Path) -> None:
    ask = {"tool_calls": [call("ask_agent", agent="helper", prompt="take your time")]}
    script: list[dict[str, Any]] = [
        {"match": "^delegate", **ask},
        {"match": "^take your time", "reply": "slow", "delay_s": 60},
    ]
    config = CONFIG.replace(
        'delegates_to = ["helper"]',
        'delegates_to = ["helper"]\napprovals = [{ tool = "ask_agent", decision = "allow" }]',
    )
    async with running(write_home(tmp_path, script, config)) as daemon:
        parent = await daemon.start_turn("delegate this")
        async with asyncio.timeout(60):
            while True:
                turns = (await daemon.get("/api/turns"))["turns"]
                if len(turns) == 2 and turns[0]["status"] == "running":
                    break
        (child,) = [turn["id"] for turn in turns if turn["parent_turn"] == parent]
        await daemon.post(f"/api/turns/{parent}/cancel")
        assert (await daemon.ended(parent))["type"] == "turn.cancelled"
        async with asyncio.timeout(60):
            assert (await daemon.ended(child))["type"] == "turn.cancelled"
