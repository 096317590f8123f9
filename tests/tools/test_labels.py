"""Rules that call tools and files sensitive: what the calls that touch them are labelled."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.config.tools import LabelRule, McpConfig
from appliance.store.database import Database
from appliance.store.journal import Journal
from appliance.store.places import PlaceLabels
from appliance.tools import labels
from appliance.tools.ports import Ports, workspace_place
from appliance.tools.registry import Toolbox
from appliance.tools.types import Intent, ToolContext, ToolOutcome
from appliance.types import Json, Label, ToolCallBlock
from tests.tools.conftest import FAKES, MakeConfig

RULES: list[dict[str, Json]] = [
    {"path": ".env", "label": "private"},
    {"path": "secrets/", "label": "private"},
    {"path": "*.pem", "label": "private"},
    {"tool": "fake__*", "label": "private"},
]


class Desk:
    def __init__(self, box: Toolbox, ctx: ToolContext, places: PlaceLabels) -> None:
        self.box, self.ctx, self.places, self._count = box, ctx, places, 0

    async def use(self, name: str, **arguments: Json) -> Label:
        """The label of what comes back."""
        self._count += 1
        intent = self.box.prepare(ToolCallBlock(f"c{self._count}", name, arguments), self.ctx)
        assert isinstance(intent, Intent), intent
        outcome = await self.box.run(intent, self.ctx)
        assert isinstance(outcome, ToolOutcome) and not outcome.is_error, outcome
        assert {block.label for block in outcome.content} == {outcome.label}
        return outcome.label

    async def workspace(self) -> Label:
        return await self.places.of(workspace_place(self.ctx.workspace.name))


@pytest.fixture
async def desk(tmp_path: Path, ctx: ToolContext, make_config: MakeConfig) -> AsyncIterator[Desk]:
    folder = tmp_path / "server"
    folder.mkdir()
    server = McpConfig(
        command=(sys.executable, str(FAKES / "server.py"), "good", str(folder)),
        paths=(str(folder),),
    )
    config = make_config({"fake": server}, {"labels": RULES})
    clock = SystemClock()
    async with Database(tmp_path / "store") as database:
        places = PlaceLabels(Journal(database, clock))
        ports = Ports(places=places)
        async with Toolbox(lambda: config, tmp_path / "state", clock, ports) as box:
            await box.learn("worker")
            for path in ("secrets/deep/a.txt", "open/b.txt", "open/key.pem"):
                (ctx.workspace / path).parent.mkdir(parents=True, exist_ok=True)
                (ctx.workspace / path).write_text(f"line of {path}\n")
            yield Desk(box, ctx, places)


async def test_a_file_is_as_sensitive_as_its_rule_by_whatever_name(desk: Desk) -> None:
    (desk.ctx.workspace / "way").symlink_to("secrets/deep")
    assert await desk.use("read_file", path="open/b.txt") is Label.INTERNAL
    for path in ("secrets/deep/a.txt", "open/../secrets/deep/a.txt", "open/key.pem", "way/a.txt"):
        assert await desk.use("read_file", path=path) is Label.PRIVATE, path


async def test_a_search_is_sensitive_only_if_it_found_something_there(desk: Desk) -> None:
    assert await desk.use("search_files", pattern="b.txt") is Label.INTERNAL
    assert await desk.use("search_files", pattern="line of") is Label.PRIVATE
    assert await desk.use("search_files", pattern="line of", path="open/b.txt") is Label.INTERNAL


async def test_a_program_may_have_read_and_copied_all_that_is_there(desk: Desk) -> None:
    assert await desk.workspace() is Label.PUBLIC
    assert await desk.use("shell", command="cp secrets/deep/a.txt copy.txt") is Label.PRIVATE
    assert await desk.workspace() is Label.PRIVATE


async def test_a_program_where_nothing_is_sensitive_is_not(desk: Desk) -> None:
    for path in ("secrets/deep/a.txt", "open/key.pem"):
        (desk.ctx.workspace / path).unlink()
    assert await desk.use("shell", command="cat open/b.txt") is Label.INTERNAL
    assert await desk.workspace() is Label.PUBLIC


async def test_a_tool_is_as_sensitive_as_its_rule(desk: Desk) -> None:
    assert await desk.use("fake__look", n=1) is Label.PRIVATE


def test_a_rule_names_a_file_a_folder_or_a_pattern() -> None:
    rules = [
        LabelRule(path="secrets", label=Label.PRIVATE),
        LabelRule(path="*.key", label="internal"),
    ]
    for path, label in {
        "secrets": Label.PRIVATE,
        "secrets/a/b": Label.PRIVATE,
        "./secrets//a": Label.PRIVATE,
        "secretsx": Label.PUBLIC,
        "a/secrets": Label.PUBLIC,
        "a/b.key": Label.INTERNAL,
        "a/b.key/c": Label.INTERNAL,
        "": Label.PUBLIC,
    }.items():
        assert labels.of_path(rules, path) is label, path


def test_too_many_files_are_taken_to_hold_what_the_rules_speak_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labels, "ENTRIES_MAX", 3)
    for number in range(4):
        (tmp_path / str(number)).touch()
    rules = [LabelRule(path="never-there", label=Label.PRIVATE)]
    assert labels.found_in(rules, b"never-there: x", tmp_path) is Label.PRIVATE
