"""A daemon reduced to what the kill tests need: a journal, and the real toolbox driven as `turns`
drives it. Its effects are counted by whoever kills it.

    python -m tests.tools.stub_daemon <folder> <calls>
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from appliance.clock import SystemClock
from appliance.config.schema import Config
from appliance.tools.ports import Ports
from appliance.tools.registry import Toolbox
from appliance.tools.types import InDoubt, Intent, NotStarted, ToolContext, ToolOutcome
from appliance.types import Json, ToolCallBlock
from tests.tools.file_notes import FileNotes

PARALLEL = 3


def call(number: int) -> ToolCallBlock:
    """The calls in turn: three kinds with an effect that shows if it happens twice."""
    name, arguments = _KINDS[number % len(_KINDS)](number)
    return ToolCallBlock(f"call-{number}", name, arguments)


def _shell(number: int) -> tuple[str, dict[str, Json]]:
    return "shell", {"command": f"sleep 0.03; echo {number} >> effects; sleep 0.03"}


def _edit(number: int) -> tuple[str, dict[str, Json]]:
    """Appends to a line: made twice, the number stands there twice."""
    return "edit_file", {"path": f"edited-{number}", "old": "begin", "new": f"begin {number}"}


def _write(number: int) -> tuple[str, dict[str, Json]]:
    return "write_file", {"path": f"written-{number}", "content": str(number)}


def _remember(number: int) -> tuple[str, dict[str, Json]]:
    return "remember", {"text": f"fact {number}"}


_KINDS = (_shell, _edit, _write, _shell, _remember)

CONFIG = Config.model_validate(
    {
        "models": {"tiny": {"engine": "scripted"}},
        "agents": {
            "worker": {
                "models": ["tiny"],
                "tools": ["shell", "edit_file", "write_file", "remember"],
            }
        },
        "tools": {"timeout_s": 30.0},
    }
)


class Journal:
    """Lines of JSON, on disk when `append` returns."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")

    def append(self, kind: str, call_id: str, text: str = "") -> None:
        self._file.write(json.dumps([kind, call_id, text]).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def read_journal(path: Path) -> dict[str, str]:
    """The last event of each call; a line cut by a kill is no event."""
    if not path.exists():
        return {}
    lines = path.read_bytes().splitlines(keepends=True)
    return {
        call_id: kind
        for kind, call_id, _ in (json.loads(line) for line in lines if line.endswith(b"\n"))
    }


async def drive(folder: Path, calls: int) -> None:
    known = read_journal(folder / "journal")
    journal = Journal(folder / "journal")
    ports = Ports(notes=FileNotes(folder / "notes"))
    ctx = ToolContext("session", "turn", "1", "worker", folder / "workspace")
    gate = asyncio.Semaphore(PARALLEL)
    async with Toolbox(lambda: CONFIG, folder / "state", SystemClock(), ports) as box:
        print("ready", flush=True)

        async def one(number: int) -> None:
            block = call(number)
            state = known.get(block.call_id, "")
            if state in ("completed", "in_doubt"):
                return
            async with gate:
                intent = box.prepare(block, ctx)
                assert isinstance(intent, Intent), intent
                outcome: ToolOutcome | InDoubt | NotStarted = NotStarted(block.call_id)
                if state == "intended":
                    outcome = await box.adopt(intent, ctx)
                else:
                    journal.append("intended", block.call_id)
                if isinstance(outcome, NotStarted):
                    outcome = await box.run(intent, ctx)
                if isinstance(outcome, InDoubt):
                    journal.append("in_doubt", block.call_id, outcome.reason)
                else:
                    text = str(outcome.content[0])
                    assert not outcome.is_error, text
                    journal.append("completed", block.call_id, text)

        async with asyncio.TaskGroup() as tasks:
            for number in range(calls):
                tasks.create_task(one(number))


if __name__ == "__main__":
    asyncio.run(drive(Path(sys.argv[1]), int(sys.argv[2])))
