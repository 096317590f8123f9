"""The loop of a turn at its edges: rings of agents, many at once, and an end at any point."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import Daemon, cli, running, write_home
from tests.journeys.test_tools_over_the_socket import asked, call

CONFIG = """
[models.main]
engine = "scripted"
script = "script.json"
slots = 64

[agents.assistant]
models = ["main"]
policy = "local-only"
tools = ["read_file", "write_file", "shell", "ask_agent"]
delegates_to = ["other"]
approvals = [
    { tool = "shell", arguments = { command = "ask *" }, decision = "ask" },
    { tool = "*", decision = "allow" },
]

[agents.other]
models = ["main"]
policy = "local-only"
tools = ["ask_agent", "shell"]
delegates_to = ["assistant"]
approvals = [
    { tool = "shell", arguments = { command = "ask *" }, decision = "ask" },
    { tool = "*", decision = "allow" },
]
"""


def ask(agent: str, prompt: str) -> dict[str, Any]:
    return call("ask_agent", agent=agent, prompt=prompt)


async def test_agents_that_ask_in_a_ring_come_to_an_end(tmp_path: Path) -> None:
    script: list[dict[str, Any]] = [
        {"match": "^round", "tool_calls": [ask("other", "back")]},
        {"match": "^back", "tool_calls": [ask("assistant", "round again")]},
        {"match": "deep at most", "reply": "stopped"},
        {"reply": "stopped above"},
    ]
    async with running(write_home(tmp_path, script, CONFIG)) as daemon:
        async with asyncio.timeout(60):
            ended = await daemon.ask("round and round")
        assert ended["text"] == "stopped above"
        turns = (await daemon.get("/api/turns"))["turns"]
        assert len(turns) == 5
        assert {turn["status"] for turn in turns} == {"done"}


async def test_fifty_agents_act_at_once_each_in_a_workspace_of_its_own(tmp_path: Path) -> None:
    script: list[dict[str, Any]] = [
        {"match": r"^go (\d+)", "tool_calls": [
            call("write_file", path="who.txt", content=r"I am \1"),
            call("shell", command=r"cat who.txt; echo; echo seen \1")]},
        {"match": r"seen (\d+)", "reply": r"done \1"},
    ]  # fmt: skip
    async with running(write_home(tmp_path, script, CONFIG)) as daemon:
        async with asyncio.timeout(120):
            ended = await asyncio.gather(*(daemon.ask(f"go {n}") for n in range(50)))
        assert [each.get("text") for each in ended] == [f"done {n}" for n in range(50)]
        said = {path.read_text() for path in (tmp_path / "state/workspaces").glob("*/who.txt")}
        assert said == {f"I am {n}" for n in range(50)}


async def test_a_colleague_that_fails_is_an_answer_and_the_turn_goes_on(tmp_path: Path) -> None:
    config = CONFIG + "\n[agents.other.limits]\nsteps_max = 2\n"
    script: list[dict[str, Any]] = [
        {"match": "^delegate", "tool_calls": [ask("other", "work 0")]},
        {"match": "^work", "tool_calls": [call("shell", command="echo more 1")]},
        {"match": "more", "tool_calls": [call("shell", command="echo more; date +%N")]},
        {"match": "has used all it may", "reply": "my colleague ran out of steps"},
    ]
    async with running(write_home(tmp_path, script, config)) as daemon:
        assert (await daemon.ask("delegate it"))["text"] == "my colleague ran out of steps"


async def reached(daemon: Daemon, turn: str, kind: str) -> None:
    async with asyncio.timeout(60):
        async for item in daemon.follow(turn):
            if item["type"] == kind:
                return


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("think", "step.routed"),
        ("run", "tool.intended"),
        ("permission", "approval.asked"),
        ("delegate", "tool.intended"),
    ],
)
async def test_a_turn_is_cancelled_wherever_it_is_and_stays_so(
    tmp_path: Path, text: str, kind: str
) -> None:
    script: list[dict[str, Any]] = [
        {"match": "^think", "reply": "slow", "delay_s": 60},
        {"match": "^run", "tool_calls": [call("shell", command="sleep 60; echo late > late.txt")]},
        {"match": "^permission", "tool_calls": [call("shell", command="ask me")]},
        {"match": "^delegate", "tool_calls": [ask("other", "think")]},
    ]
    home = write_home(tmp_path, script, CONFIG)
    async with running(home) as daemon:
        turn = await daemon.start_turn(text)
        await reached(daemon, turn, kind)
        status, said = await daemon.post(f"/api/turns/{turn}/cancel")
        assert (status, said["cancelled"]) == (200, True)
        daemon.kill()  # what was acknowledged is on disk
        await daemon.process.wait()
    async with running(home) as daemon:
        assert (await daemon.get(f"/api/turns/{turn}"))["status"] == "cancelled"
        turns = (await daemon.get("/api/turns"))["turns"]
        assert {each["status"] for each in turns} == {"cancelled"}
        assert (await daemon.get("/api/approvals"))["approvals"] == []
        assert not list((home / "state" / "calls").glob("*.claim")) or await over(home)


async def test_no_turn_outlives_the_one_that_asked_for_it(tmp_path: Path) -> None:
    """Cancelled in the very moment in which it asks, and killed while many are being cancelled."""
    script: list[dict[str, Any]] = [
        {"match": "^think", "reply": "slow", "delay_s": 60},
        {"match": "^delegate", "tool_calls": [ask("other", "think")]},
    ]
    home = write_home(tmp_path, script, CONFIG)

    async def cancel_in_asking(daemon: Daemon) -> None:
        turn = await daemon.start_turn("delegate")
        await reached(daemon, turn, "tool.intended")
        await daemon.post(f"/api/turns/{turn}/cancel")

    async with running(home) as daemon:
        await asyncio.gather(*(cancel_in_asking(daemon) for _ in range(20)))
        turns = (await daemon.get("/api/turns", limit=100))["turns"]
        assert [each["status"] for each in turns if each["status"] != "cancelled"] == []
        asking = [asyncio.ensure_future(cancel_in_asking(daemon)) for _ in range(20)]
        await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        daemon.kill()
        await daemon.process.wait()
        await asyncio.gather(*asking, return_exceptions=True)
    async with running(home) as daemon:
        turns = {each["id"]: each for each in (await daemon.get("/api/turns", limit=200))["turns"]}
        for turn in turns.values():
            asker = turns.get(turn["parent_turn"] or "")
            if asker is not None and asker["status"] == "cancelled":
                assert (await daemon.ended(turn["id"]))["type"] == "turn.cancelled"
        for turn in turns.values():
            await daemon.post(f"/api/turns/{turn['id']}/cancel")


async def over(home: Path) -> bool:
    """Whether every runner has reported: a cancelled one does so at once."""
    async with asyncio.timeout(60):
        while True:
            claims = {path.stem for path in (home / "state" / "calls").glob("*.claim")}
            if claims <= {path.stem for path in (home / "state" / "calls").glob("*.done")}:
                return True
            await asyncio.sleep(0.02)


async def test_two_hundred_calls_of_one_step_are_all_answered(tmp_path: Path) -> None:
    calls = [call("read_file", path=f"no-{n}.txt") for n in range(200)]
    script: list[dict[str, Any]] = [{"match": "^many", "tool_calls": calls}, {"reply": "all seen"}]
    async with running(write_home(tmp_path, script, CONFIG)) as daemon:
        turn = await daemon.start_turn("many")
        assert (await daemon.ended(turn)).get("text") == "all seen"
        kinds = [item["type"] async for item in daemon.follow(turn)]
        assert kinds.count("tool.completed") == 200
        code, out, _ = await cli(tmp_path, "turns", "--json")
        assert (code, json.loads(out)[0]["status"]) == (0, "done")


async def test_a_person_may_be_asked_by_the_turn_of_a_turn(tmp_path: Path) -> None:
    """cto asks backend, backend asks a person: the answer reaches all the way up."""
    script: list[dict[str, Any]] = [
        {"match": "^delegate", "tool_calls": [ask("other", "permission")]},
        {"match": "^permission", "tool_calls": [call("shell", command="ask me || echo ran")]},
        {"match": "ran$", "reply": "below it is done"},
        {"match": "below it is done", "reply": "all well"},
    ]
    async with running(write_home(tmp_path, script, CONFIG)) as daemon:
        turn = await daemon.start_turn("delegate it")
        question = await asked(daemon)
        assert question["turn"] != turn
        await daemon.post(f"/api/approvals/{question['id']}", {"decision": "allow_once"})
        ended = await daemon.ended(turn)
        assert ended.get("text") == "all well", ended
        waited = [item.get("waited_ms") async for item in daemon.follow(turn)
                  if item["type"] == "tool.completed"]  # fmt: skip
        assert waited[0] > 0


async def test_a_colleague_has_no_more_time_than_is_left(tmp_path: Path) -> None:
    script: list[dict[str, Any]] = [
        {"match": "^delegate", "tool_calls": [ask("other", "think")]},
        {"match": "^think", "reply": "slow", "delay_s": 60},
    ]
    async with running(write_home(tmp_path, script, CONFIG)) as daemon:
        async with asyncio.timeout(50):
            ended = await daemon.ask("delegate it", limits={"turn_s_max": 3})
            assert ended["type"] == "turn.failed"
            for turn in (await daemon.get("/api/turns"))["turns"]:
                assert (await daemon.ended(turn["id"]))["type"] == "turn.failed"
