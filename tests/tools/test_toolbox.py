"""The built-in tools through the toolbox, as a turn uses them."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.errors import EgressDenied
from appliance.tools.ports import Answer, Fetched, Ports
from appliance.tools.registry import Toolbox
from appliance.tools.types import Deny, FilePolicy, InDoubt, Intent, ToolContext, ToolOutcome
from appliance.types import Json, Label, TextBlock, ToolCallBlock
from tests.tools.conftest import MakeConfig
from tests.tools.file_notes import FileNotes


class Others:
    """The rooms beside: egress, delegation."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def get(self, url: str, label: Label, max_bytes: int, timeout_s: float) -> Fetched:
        if "denied" in url:
            raise EgressDenied("host denied.example is not allowed", hint="[network]")
        return Fetched(200, "text/html", b"<p>hello</p>", url)

    async def ask(self, agent: str, prompt: str, key: str, ctx: ToolContext) -> Answer:
        self.asked.append((agent, key))
        return Answer("done", Label.PRIVATE)


class Desk:
    """One toolbox and one context."""

    def __init__(self, box: Toolbox, ctx: ToolContext) -> None:
        self.box, self.ctx, self._count = box, ctx, 0

    async def use(self, name: str, **arguments: Json) -> ToolOutcome:
        self._count += 1
        intent = self.box.prepare(ToolCallBlock(f"c{self._count}", name, arguments), self.ctx)
        if isinstance(intent, ToolOutcome):
            return intent
        outcome = await self.box.run(intent, self.ctx)
        assert not isinstance(outcome, InDoubt), outcome
        return outcome


def text(outcome: ToolOutcome) -> str:
    block = outcome.content[0]
    assert isinstance(block, TextBlock)
    return block.text


@pytest.fixture
def others() -> Others:
    return Others()


@pytest.fixture
async def desk(
    tmp_path: Path, ctx: ToolContext, make_config: MakeConfig, others: Others
) -> AsyncIterator[Desk]:
    async with opened(tmp_path, ctx, make_config, others) as desk:
        yield desk


@pytest.fixture
async def brief(
    tmp_path: Path, ctx: ToolContext, make_config: MakeConfig, others: Others
) -> AsyncIterator[Desk]:
    """A desk whose tools have two seconds."""
    async with opened(tmp_path, ctx, make_config, others, timeout_s=2.0) as desk:
        yield desk


@asynccontextmanager
async def opened(
    tmp_path: Path, ctx: ToolContext, make_config: MakeConfig, others: Others, **tools: object
) -> AsyncIterator[Desk]:
    config = make_config(tools={"fetch_enabled": True, "timeout_s": 30.0, **tools})
    ports = Ports(fetcher=others, delegate=others, notes=FileNotes(tmp_path / "notes"))
    async with Toolbox(lambda: config, tmp_path / "state", SystemClock(), ports) as box:
        yield Desk(box, ctx)


async def test_files_are_written_read_edited_listed_and_searched(desk: Desk) -> None:
    assert "Created src/a.py" in text(
        await desk.use("write_file", path="src/a.py", content="x\ny\n")
    )
    assert text(await desk.use("read_file", path="src/a.py", first_line=2, lines=1)) == "y\n"
    await desk.use("edit_file", path="src/a.py", old="y", new="z")
    assert text(await desk.use("read_file", path="src/a.py")) == "x\nz\n"
    assert "src/a.py  4" in text(await desk.use("list_files"))
    assert "src/a.py:2:z" in text(await desk.use("search_files", pattern="^z$"))
    assert text(await desk.use("search_files", pattern="nothing")) == "(no match)"


async def test_nothing_that_lies_in_a_workspace_is_run_outside_the_sandbox(
    desk: Desk, tmp_path: Path
) -> None:
    """Modules by the names that the runner imports, start-up files, a configuration of ripgrep."""
    seen = tmp_path / "seen"
    trap = f"open({str(seen)!r}, 'a').write(__file__)\n"
    for name in ("sitecustomize", "usercustomize", "json", "os", "errno", "fcntl", "appliance"):
        await desk.use("write_file", path=f"{name}.py", content=trap)
    await desk.use("write_file", path="appliance/__init__.py", content=trap)
    await desk.use("write_file", path="x.pth", content=f"import os; {trap}")
    await desk.use("write_file", path=".ripgreprc", content="--pre=/bin/false\n")
    await desk.use("write_file", path="note.txt", content="word\n")
    await desk.use("edit_file", path="note.txt", old="word", new="words")
    assert "note.txt:1:words" in text(await desk.use("search_files", pattern="^words$"))
    assert "ok" in text(await desk.use("shell", command="echo ok"))
    assert not seen.exists()


async def test_shell_says_its_output_and_exit_code(desk: Desk) -> None:
    good = await desk.use("shell", command="echo hello")
    assert (text(good), good.is_error) == ("hello\n", False)
    bad = await desk.use("shell", command="echo oh; exit 3")
    assert (text(bad), bad.is_error) == ("oh\n\n(exit code 3)", True)


async def test_a_long_output_is_cut_and_kept_whole_in_the_workspace(desk: Desk) -> None:
    outcome = await desk.use("shell", command="seq 1 200000")
    assert outcome.truncated
    assert outcome.full_output_path is not None
    assert outcome.full_output_path in text(outcome)
    assert len(text(outcome)) < 40_000
    kept = (desk.ctx.workspace / outcome.full_output_path).read_text().split()
    assert kept == [str(n) for n in range(1, 200_001)]
    tail = await desk.use("read_file", path=outcome.full_output_path, first_line=200_000)
    assert text(tail) == "200000\n"


async def test_an_output_kept_cannot_be_led_outside_by_a_link(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    await desk.use("shell", command=f"ln -s {tmp_path}/outside .outputs")
    outcome = await desk.use("shell", command="seq 1 200000")
    assert outcome.full_output_path is None
    assert list((tmp_path / "outside").iterdir()) == []


async def test_binary_output_is_described_not_shown(desk: Desk) -> None:
    outcome = await desk.use("shell", command="head -c 5000 /dev/urandom; printf '\\0'")
    assert text(outcome).startswith("(binary output, 5001 bytes")
    data = base64.b64encode(bytes(range(256)) * 40).decode()
    await desk.use("shell", command=f"echo {data} | base64 -d > image")
    assert "binary" in text(await desk.use("read_file", path="image"))


async def test_terminal_escapes_do_not_reach_the_model(desk: Desk) -> None:
    outcome = await desk.use("shell", command=r"printf '\033[31mred\033[0m \033]0;title\007end'")
    assert text(outcome) == "red end"


async def test_a_tool_that_hangs_is_ended_and_says_so(brief: Desk) -> None:
    outcome = await brief.use("shell", command="echo before; sleep 60")
    assert outcome.is_error
    assert text(outcome) == "before\n\nIt took longer than 2 seconds and was ended."


async def test_a_regular_expression_without_end_does_not_hold_the_daemon(brief: Desk) -> None:
    await brief.use("write_file", path="f", content="a" * 40 + "!\n")
    outcome = await brief.use("search_files", pattern="(a+)+$")
    assert isinstance(text(outcome), str)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("nothing", {}, "There is no tool 'nothing' for you"),
        ("shell", {"cmd": "ls"}, "'command' is a required property"),
        ("read_file", {"path": 7}, "7 is not of type 'string'"),
        ("ask_agent", {"agent": "stranger", "prompt": "x"}, "you may ask other"),
        ("read_file", {"path": "../../etc/passwd"}, "Not allowed"),
        ("search_files", {"pattern": "x", "path": "/etc"}, "Not allowed"),
        ("edit_file", {"path": "no", "old": "a", "new": "b"}, "No such file"),
        ("search_files", {"pattern": "("}, "unclosed group"),
    ],
)
async def test_bad_input_is_a_clear_answer_to_the_model(
    desk: Desk, name: str, arguments: dict[str, Json], message: str
) -> None:
    outcome = await desk.use(name, **arguments)
    assert outcome.is_error
    assert message in text(outcome)


async def test_a_summary_shows_exactly_what_would_run(desk: Desk) -> None:
    await desk.use("write_file", path="a", content="one\ntwo\n")

    def summary(name: str, **arguments: Json) -> str:
        intent = desk.box.prepare(ToolCallBlock("c", name, arguments), desk.ctx)
        assert isinstance(intent, Intent)
        return intent.summary

    assert summary("shell", command="ls \x1b[8m‮-la") == "$ ls \\x1b[8m\\u202e-la"
    assert "-two\n+three" in summary("edit_file", path="a", old="two", new="three")
    assert "-one" in summary("write_file", path="a", content="two\n")


async def test_a_prepared_call_has_the_same_hash_after_its_effect(desk: Desk) -> None:
    await desk.use("write_file", path="a", content="one")
    call = ToolCallBlock("same", "edit_file", {"path": "a", "old": "one", "new": "two"})
    before = desk.box.prepare(call, desk.ctx)
    assert isinstance(before, Intent)
    await desk.box.run(before, desk.ctx)
    after = desk.box.prepare(call, desk.ctx)
    assert isinstance(after, Intent)
    assert after.call_hash == before.call_hash


async def test_private_data_is_never_fetched_with(desk: Desk) -> None:
    private = replace(desk.ctx, label=Label.PRIVATE)
    call = ToolCallBlock("c", "fetch", {"url": "https://example.org/?q=secret"})
    intent = desk.box.prepare(call, private)
    assert isinstance(intent, Intent)
    assert isinstance(desk.box.decide(intent, private), Deny)


async def test_fetch_goes_through_egress_and_tells_its_refusal(desk: Desk) -> None:
    assert "<p>hello</p>" in text(await desk.use("fetch", url="https://example.org"))
    denied = await desk.use("fetch", url="https://denied.example")
    assert denied.is_error
    assert "not allowed" in text(denied)


async def test_a_colleagues_answer_keeps_its_label_and_its_key(desk: Desk, others: Others) -> None:
    outcome = await desk.use("ask_agent", agent="other", prompt="do it")
    assert (text(outcome), outcome.label) == ("done", Label.PRIVATE)
    assert others.asked == [("other", "c1")]


async def test_notes_are_found_again_by_their_words(desk: Desk) -> None:
    await desk.use("remember", text="The build runs with make check.")
    await desk.use("remember", text="Lunch is at noon.")
    assert "make check" in text(await desk.use("recall", query="how to build"))
    assert text(await desk.use("recall", query="holiday")) == "(nothing remembered on that)"


async def test_a_file_policy_holds_for_tools_and_processes(desk: Desk) -> None:
    for path in ("tests/t", "spec/s", "src/x"):
        await desk.use("write_file", path=path, content="original")
    desk.ctx = replace(desk.ctx, policy=FilePolicy(read_only=("tests",), hidden=("spec",)))
    assert "read-only" in text(await desk.use("write_file", path="tests/t", content="x"))
    assert "hidden" in text(await desk.use("read_file", path="spec/s"))
    await desk.use("shell", command="echo x > tests/t; echo x > spec/s; echo y > src/x; rm -r spec")
    assert (desk.ctx.workspace / "tests/t").read_text() == "original"
    assert (desk.ctx.workspace / "spec/s").read_text() == "original"
    assert (desk.ctx.workspace / "src/x").read_text() == "y\n"


async def test_without_a_sandbox_no_program_starts(
    tmp_path: Path, ctx: ToolContext, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    async with opened(tmp_path, ctx, make_config, Others(), sandbox="bubblewrap") as desk:
        assert not desk.box.sandbox.can_run_programs
        assert "bwrap" in "".join(desk.box.sandbox.reasons)
        outcome = await desk.use("shell", command="echo hello")
        assert outcome.is_error
        assert "No program can be started" in text(outcome)
