"""The reference server `everything` in one turn of an agent: each kind of answer it knows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import Daemon, running, write_home
from tests.journeys.test_tools_over_the_socket import asked, call

PROGRAM = Path(sys.prefix) / "mcp-servers/node_modules/.bin/mcp-server-everything"

CONFIG = f"""
[models.main]
engine = "scripted"
script = "script.json"
slots = 8

[agents.assistant]
models = ["main"]
policy = "local-only"
tools = ["shell"]
mcp = ["everything"]
approvals = [{{ tool = "*", decision = "allow" }}]

[mcp.everything]
command = ["{PROGRAM}"]
environment = {{ GZIP_ALLOWED_DOMAINS = "" }}
start_timeout_s = 30.0
"""


def tool(name: str, **arguments: Any) -> dict[str, Any]:
    return call(f"everything__{name}", **arguments)


SCRIPT: list[dict[str, Any]] = [
    {"match": "^all of it$", "tool_calls": [
        tool("get-sum", a=2, b=3),
        tool("get-annotated-message", messageType="error", includeImage=True),
        tool("get-env"),
        tool("get-resource-links", count=2),
        tool("get-resource-reference", resourceType="Text", resourceId=1),
        tool("get-resource-reference", resourceType="Blob", resourceId=2),
        tool("get-structured-content", location="Chicago"),
        tool("trigger-long-running-operation", duration=0.2, steps=4),
        tool("toggle-simulated-logging"),
        tool("simulate-research-query", topic="anything"),
        tool("trigger-sampling-request", prompt="say four", maxTokens=10),
        tool("trigger-elicitation-request"),
    ]},
    {"match": "say four", "reply": "four"},
    {"reply": "all seen"},
]  # fmt: skip


async def results_of(daemon: Daemon, turn: str) -> dict[str, Any]:
    """By tool; of two calls of one, both."""
    found: dict[str, Any] = {}
    async for item in daemon.follow(turn):
        if item["type"] == "tool.completed":
            name = item["tool"].partition("__")[2]
            found.setdefault(name, []).append(item["result"])
    return found


def text(result: dict[str, Any]) -> str:
    return "\n".join(part.get("text", "") for part in result["content"])


@pytest.mark.skipif(not PROGRAM.exists(), reason="scripts/test.sh installs it where npm is")
async def test_every_kind_of_answer_reaches_the_model_or_the_workspace(tmp_path: Path) -> None:
    home = write_home(tmp_path, SCRIPT, CONFIG)
    async with running(home) as daemon:
        turn = await daemon.start_turn("all of it")
        question = await asked(daemon)
        assert question["reason"] == "question"
        status, answered = await daemon.post(
            f"/api/approvals/{question['id']}",
            {"decision": "allow_once", "content": {"name": "Ada", "integer": 7}},
        )
        assert status == 200, answered
        results = await results_of(daemon, turn)
        ended = await daemon.ended(turn)
        assert ended.get("text") == "all seen", ended
    said = {name: text(result) for name, (result, *_) in results.items()}

    assert "The sum of 2 and 3 is 5" in said["get-sum"]
    kinds = [part["type"] for part in results["get-annotated-message"][0]["content"]]
    assert kinds == ["text", "image"]
    environment = json.loads(said["get-env"])
    assert set(environment) <= {
        "PATH", "HOME", "LANG", "PWD", "PYTHONDONTWRITEBYTECODE", "GZIP_ALLOWED_DOMAINS",
    }  # fmt: skip
    assert said["get-resource-links"].count("(link to demo://resource/") == 2
    assert "plaintext resource" in text(results["get-resource-reference"][0])
    assert json.loads(said["get-structured-content"]).keys() >= {"temperature", "humidity"}
    assert "completed" in said["trigger-long-running-operation"]
    assert "There is no tool" in said["simulate-research-query"]  # it runs only as a task
    assert '"text": "four"' in said["trigger-sampling-request"]
    assert "Ada" in said["trigger-elicitation-request"]

    blob = text(results["get-resource-reference"][1])
    (kept,) = (home / "state" / "workspaces").glob("*/.outputs/*.bin")
    assert f"kept in .outputs/{kept.name}" in blob
    assert b"a base64 blob" in kept.read_bytes()
