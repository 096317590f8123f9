"""A server in mid-call asks a person (elicitation) or a model (sampling), through the daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.daemons import Daemon, cli, running, write_home
from tests.journeys.test_mcp import CONFIG, mcp_command
from tests.journeys.test_tools_over_the_socket import asked, call

SCRIPT: list[dict[str, Any]] = [
    {"match": "^look", "tool_calls": [call("fake__look", n=1)]},
    {"match": "^act", "tool_calls": [call("fake__act", n=1)]},
    {"match": r'"action": "accept".*"which": "left"', "reply": "left it is"},
    {"match": r'"action": "decline"', "reply": "nobody said which"},
    {"match": r"^2\+2\?$", "reply": "four"},
    {"match": '"text": "four"', "reply": "the server heard four"},
    {"match": "declined", "reply": "the server heard nothing"},
    {"match": "Nobody knows whether", "reply": "I leave it"},
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_home(tmp_path / "home", SCRIPT, _config(tmp_path, "elicit"))


def _config(tmp_path: Path, behaviour: str, more: str = "") -> str:
    folder = tmp_path / "server"
    folder.mkdir()
    command = mcp_command(behaviour, folder)
    return CONFIG.format(command=command, folder=folder) + "timeout_s = 20\n" + more


async def questioned(daemon: Daemon, text: str = "look there") -> tuple[str, dict[str, Any]]:
    """A turn whose server asks something, and its question."""
    turn = await daemon.start_turn(text)
    question = await asked(daemon)
    assert (question["reason"], question["tool"]) == ("question", "fake")
    assert question["summary"] == "Which one?"
    return turn, question


async def test_a_servers_question_is_answered_on_the_command_line(home: Path) -> None:
    async with running(home) as daemon:
        turn, question = await questioned(daemon)
        assert (await daemon.get(f"/api/turns/{turn}"))["status"] == "waiting_approval"
        code, out, err = await cli(home, "approvals", "show", question["id"])
        assert code == 0, err
        assert "--set which=string" in out
        code, _, err = await cli(
            home, "approvals", "allow", question["id"], "--set", "which=left", "--json"
        )
        assert code == 0, err
        assert (await daemon.ended(turn))["text"] == "left it is"
        kinds = [item["type"] async for item in daemon.follow(turn)]
        assert kinds.index("question.asked") < kinds.index("question.answered")
        assert (await daemon.get("/api/approvals"))["approvals"] == []
        status, again = await daemon.post(
            f"/api/approvals/{question['id']}", {"decision": "reject_once"}
        )
        assert (status, again["status"]) == (200, "allow_once")


async def test_a_question_is_refused(home: Path) -> None:
    async with running(home) as daemon:
        turn, question = await questioned(daemon)
        code, _, err = await cli(home, "approvals", "deny", question["id"])
        assert code == 0, err
        assert (await daemon.ended(turn))["text"] == "nobody said which"


@pytest.mark.parametrize(
    ("content", "wrong"),
    [({}, "which"), ({"which": 7}, "not of type 'string'"), ({"what": "left"}, "which")],
)
async def test_an_answer_that_does_not_fit_is_refused_and_the_question_waits_on(
    home: Path, content: dict[str, Any], wrong: str
) -> None:
    async with running(home) as daemon:
        turn, question = await questioned(daemon)
        place = f"/api/approvals/{question['id']}"
        status, problem = await daemon.post(place, {"decision": "allow_once", "content": content})
        assert (status, problem["code"]) == (400, "bad_request")
        assert wrong in problem["detail"] and "--set NAME=VALUE" in problem["hint"]
        body = {"decision": "allow_once", "content": {"which": "left"}}
        assert (await daemon.post(place, body))[0] == 200
        assert (await daemon.ended(turn))["text"] == "left it is"


async def test_a_cancelled_turn_takes_its_question_along(home: Path) -> None:
    async with running(home) as daemon:
        turn, question = await questioned(daemon)
        assert (await daemon.post(f"/api/turns/{turn}/cancel"))[0] == 200
        assert (await daemon.ended(turn))["type"] == "turn.cancelled"
        assert (await daemon.get("/api/approvals"))["approvals"] == []
        shown = await daemon.get(f"/api/approvals/{question['id']}")
        assert shown["status"] in ("lost", "ended")


async def test_a_question_does_not_outlive_the_daemon_and_its_reading_call_is_made_again(
    home: Path,
) -> None:
    async with running(home) as daemon:
        turn, question = await questioned(daemon)
        daemon.kill()
        await daemon.process.wait()
    async with running(home) as daemon:
        again = await asked_anew(daemon, question["id"])
        body = {"decision": "allow_once", "content": {"which": "left"}}
        assert (await daemon.post(f"/api/approvals/{again['id']}", body))[0] == 200
        assert (await daemon.ended(turn))["text"] == "left it is"
        assert (await daemon.get(f"/api/approvals/{question['id']}"))["status"] == "lost"


async def test_a_question_in_a_call_with_an_effect_is_in_doubt_after_the_daemons_death(
    home: Path,
) -> None:
    async with running(home) as daemon:
        turn, question = await questioned(daemon, "act there")
        daemon.kill()
        await daemon.process.wait()
    async with running(home) as daemon:
        doubt = await asked_anew(daemon, question["id"])
        assert doubt["reason"] == "in_doubt"
        await daemon.post(f"/api/approvals/{doubt['id']}", {"decision": "reject_once"})
        assert (await daemon.ended(turn))["text"] == "I leave it"


async def asked_anew(daemon: Daemon, old: str) -> dict[str, Any]:
    """The question that waits once the `old` one is gone."""
    while (question := await asked(daemon))["id"] == old:
        continue
    return question


async def test_a_servers_prompt_is_a_child_turn_of_the_callers_agent(tmp_path: Path) -> None:
    home = write_home(tmp_path / "home", SCRIPT, _config(tmp_path, "sample", 'label = "private"\n'))
    async with running(home) as daemon:
        turn = await daemon.start_turn("look there")
        assert (await daemon.ended(turn))["text"] == "the server heard four"
        turns = (await daemon.get("/api/turns"))["turns"]
        (child,) = [row for row in turns if row["id"] != turn]
        shown = await daemon.get(f"/api/turns/{child['id']}")
        assert (shown["agent"], shown["label"], shown["text"]) == ("assistant", "private", "four")
        accepted, *_ = [item async for item in daemon.follow(child["id"])]
        assert accepted["parent_turn"] == turn
        assert accepted["bare"]["asked_by"] == "fake"


@pytest.mark.parametrize(("own", "most"), [(1000, 10), (8, 8)])
async def test_a_servers_prompt_is_bound_by_what_is_left_of_its_turn(
    tmp_path: Path, own: int, most: int
) -> None:
    limits = f"[agents.assistant.limits]\noutput_tokens_max = {own}\n"
    home = write_home(tmp_path / "home", SCRIPT, _config(tmp_path, "sample", limits))
    async with running(home) as daemon:
        turn = await daemon.start_turn("look there")
        await daemon.ended(turn)
        turns = (await daemon.get("/api/turns"))["turns"]
        (child,) = [row for row in turns if row["id"] != turn]
        accepted, *_ = [item async for item in daemon.follow(child["id"])]
        assert 1 <= accepted["limits"]["output_tokens_max"] <= most
        assert accepted["limits"]["steps_max"] == 1
