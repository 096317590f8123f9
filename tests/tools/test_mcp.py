"""MCP servers: bad ones stall nothing and reach nothing, dying ones repeat nothing."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.config.tools import McpConfig
from appliance.store.database import Database
from appliance.store.journal import Journal
from appliance.store.places import PlaceLabels
from appliance.tools.ports import Ports, server_place
from appliance.tools.registry import Toolbox
from appliance.tools.sandbox.report import SandboxReport
from appliance.tools.types import Ask, InDoubt, Intent, NotStarted, ToolContext, ToolOutcome
from appliance.types import Effect, Json, Label, TextBlock, ToolCallBlock
from tests.tools.conftest import FAKES, MakeConfig, until

Open = Callable[..., AbstractAsyncContextManager[Toolbox]]
LIMIT_S = 60.0
"""No bad server holds a call longer than its `timeout_s`; the rest is room for a busy machine."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "server"
    folder.mkdir()
    return folder


@pytest.fixture
def open_box(tmp_path: Path, folder: Path, make_config: MakeConfig) -> Open:
    """A toolbox with one server, `fake`, that behaves as told."""

    @asynccontextmanager
    async def opened(
        behaviour: str,
        ports: Ports | None = None,
        tools_section: dict[str, object] | None = None,
        **section: object,
    ) -> AsyncIterator[Toolbox]:
        server = McpConfig(
            command=(sys.executable, str(FAKES / "server.py"), behaviour, str(folder)),
            paths=(str(folder),),
            **{"timeout_s": 30.0, "start_timeout_s": 60.0, **section},
        )
        config = make_config({"fake": server}, tools_section)
        state = tmp_path / "state"
        async with Toolbox(lambda: config, state, SystemClock(), ports or Ports()) as box:
            await box.learn("worker")
            yield box

    return opened


def call(box: Toolbox, ctx: ToolContext, tool: str, number: int = 1) -> Intent:
    intent = box.prepare(ToolCallBlock(f"call-{number}", f"fake__{tool}", {"n": number}), ctx)
    assert isinstance(intent, Intent), intent
    return intent


def said(outcome: ToolOutcome | InDoubt | NotStarted) -> str:
    assert isinstance(outcome, ToolOutcome), outcome
    block = outcome.content[0]
    assert isinstance(block, TextBlock)
    return block.text


async def test_tools_carry_their_servers_name_effect_and_label(
    open_box: Open, ctx: ToolContext
) -> None:
    async with open_box("good", label=Label.PRIVATE) as box:
        specs = {spec.name: spec for spec in box.specs("worker") if "__" in spec.name}
        assert {name: spec.effect for name, spec in specs.items()} == {
            "fake__look": Effect.READ,
            "fake__act": Effect.ONCE,
        }
        outcome = await box.run(call(box, ctx, "look", 7), ctx)
        assert said(outcome) == "look 7"
        assert isinstance(outcome, ToolOutcome)
        assert outcome.label is Label.PRIVATE
        assert isinstance(box.decide(call(box, ctx, "act"), ctx), Ask)


async def test_config_overrides_what_a_server_says_of_its_effects(
    open_box: Open, ctx: ToolContext
) -> None:
    async with open_box("good", effects={"look": "once"}, tools=("l*",)) as box:
        specs = [spec for spec in box.specs("worker") if "__" in spec.name]
        assert [(spec.name, spec.effect) for spec in specs] == [("fake__look", Effect.ONCE)]


async def test_wrong_arguments_never_reach_the_server(
    open_box: Open, ctx: ToolContext, folder: Path
) -> None:
    async with open_box("good") as box:
        wrong = box.prepare(ToolCallBlock("c", "fake__look", {"n": "seven"}), ctx)
        assert "not of type 'integer'" in said(wrong)  # type: ignore[arg-type]
    assert not (folder / "calls").exists()


@pytest.mark.parametrize(
    "behaviour",
    [
        "hang",
        "huge",
        "endless",
        "fat",
        "noline",
        "badjson",
        "wrongid",
        "notresult",
        "deep",
        "binary",
    ],
)
async def test_a_bad_answer_is_an_error_in_time_and_the_loop_goes_on(
    open_box: Open, ctx: ToolContext, behaviour: str
) -> None:
    async with open_box(behaviour, timeout_s=0.8) as box:
        longest_s, stop = 0.0, asyncio.Event()

        async def beat() -> None:
            nonlocal longest_s
            while not stop.is_set():
                before = time.monotonic()
                await asyncio.sleep(0.01)
                longest_s = max(longest_s, time.monotonic() - before - 0.01)

        beating = asyncio.create_task(beat())
        async with asyncio.timeout(LIMIT_S):
            outcome = await box.run(call(box, ctx, "look"), ctx)
        stop.set()
        await beating
        assert isinstance(outcome, ToolOutcome)
        assert outcome.is_error or behaviour == "binary"
        text = said(outcome)
        assert "\x1b" not in text
        assert len(text) < 64 << 10
        assert longest_s < 5.0


@pytest.mark.parametrize("behaviour", ["stderr", "twice"])
async def test_noise_of_a_server_is_not_taken_for_an_answer(
    open_box: Open, ctx: ToolContext, behaviour: str
) -> None:
    async with open_box(behaviour, timeout_s=20.0) as box:
        for number in (1, 2):
            outcome = await box.run(call(box, ctx, "look", number), ctx)
            assert said(outcome) == f"look {number}"


async def test_names_of_tools_cannot_be_taken_for_others(open_box: Open, ctx: ToolContext) -> None:
    async with open_box("names") as box:
        names = {spec.name for spec in box.specs("worker") if "__" in spec.name}
        theirs = {"shell", "-rf", "look", "_shell", "__", "fake__look"}
        assert names == {f"fake__{name}" for name in theirs}
        assert said(await box.run(call(box, ctx, "look"), ctx)) == "look 1"


async def test_tools_that_change_within_a_connection_are_off_at_once(
    open_box: Open, ctx: ToolContext, folder: Path
) -> None:
    async with open_box("swap") as box:
        first, second = call(box, ctx, "act", 1), call(box, ctx, "act", 2)
        assert said(await box.run(first, ctx)) == "act 1"
        assert "changed since they were accepted" in said(await box.run(second, ctx))
        assert (folder / "effects").read_text() == "1\n"
        assert [spec for spec in box.specs("worker") if "__" in spec.name] == []


@pytest.mark.parametrize("sandbox", ["bubblewrap", "landlock"], indirect=True)
async def test_nothing_of_a_server_outlives_the_daemons_wish_to_end_it(
    open_box: Open, ctx: ToolContext, folder: Path, sandbox: SandboxReport
) -> None:
    async with open_box("stubborn", tools_section={"sandbox": sandbox.mode}) as box:
        assert said(await box.run(call(box, ctx, "look"), ctx)) == "look 1"
        await until(folder / "alive")
        begun = time.monotonic()
    assert time.monotonic() - begun < 30.0
    last = (folder / "alive").read_text()
    await asyncio.sleep(0.2)
    assert (folder / "alive").read_text() == last


@pytest.mark.parametrize("behaviour", ["die", "leave", "silent"])
async def test_a_server_that_does_not_start_is_a_sentence_not_a_failure(
    open_box: Open, behaviour: str
) -> None:
    async with open_box(behaviour, start_timeout_s=1.5) as box:
        (report,) = box.servers.report()
        assert report["state"] == "failed"
        assert "not available" in report["problem"]
        assert [spec for spec in box.specs("worker") if "__" in spec.name] == []


@pytest.mark.parametrize("behaviour", ["flood_tools", "loop_pages", "badschema", "poison"])
async def test_a_bad_tool_list_is_bounded_cleaned_and_does_not_mislead(
    open_box: Open, ctx: ToolContext, behaviour: str
) -> None:
    async with open_box(behaviour) as box:
        specs = [spec for spec in box.specs("worker") if "__" in spec.name]
        assert len(specs) <= 128
        for spec in specs:
            assert spec.name.startswith("fake__")
            assert spec.description.startswith("(from fake) ")
            assert len(spec.description) < 1_200
            assert not {"\x1b", "​", "‮", "\U000e006f"} & set(spec.description)
            assert ".." not in spec.name
        for spec in specs[:8]:
            box.prepare(ToolCallBlock("c", spec.name, {"n": "a" * 5_000 + "!"}), ctx)
        if behaviour == "poison":
            assert {spec.name for spec in specs} == {"fake__look", "fake__act"}


async def test_changed_tools_are_off_until_a_person_accepts_them(
    open_box: Open, ctx: ToolContext, folder: Path
) -> None:
    async with open_box("changed") as box:
        first = call(box, ctx, "act", 1)
        assert said(await box.run(first, ctx)) == "act 1"
    (folder / "flip").touch()
    async with open_box("changed") as box:
        stale = call(box, ctx, "act", 2)
        assert "changed since they were accepted" in said(await box.run(stale, ctx))
        assert [spec for spec in box.specs("worker") if "__" in spec.name] == []
        assert (folder / "effects").read_text() == "1\n"
        assert box.servers.accept_tools("fake")
        assert said(await box.run(call(box, ctx, "act", 3), ctx)) == "act 3"


async def test_a_caged_server_sees_no_secret_no_process_and_no_network(
    open_box: Open, ctx: ToolContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "canary-key")
    async with open_box("spy") as box:
        if box.sandbox.mode != "bubblewrap":
            pytest.skip("hiding processes needs bubblewrap")
        seen = json.loads(said(await box.run(call(box, ctx, "look"), ctx)))
    assert "canary-key" not in seen["environment"].values()
    assert seen["home"] == [] or seen["home"] == [".pyenv"]
    assert len(seen["processes"]) <= 3
    assert seen["interfaces"] == []


class _Person:
    def __init__(self, answer: Mapping[str, Json] | None) -> None:
        self.answer, self.asked = answer, list[tuple[str, str, Label]]()

    async def elicit(
        self, server: str, message: str, schema: Mapping[str, Json], ctx: ToolContext
    ) -> Mapping[str, Json] | None:
        self.asked.append((server, message, ctx.label))
        return self.answer

    async def sample(
        self,
        server: str,
        system: str,
        messages: tuple[tuple[str, str], ...],
        max_tokens: int,
        ctx: ToolContext,
    ) -> str:
        self.asked.append((server, messages[0][1], ctx.label))
        return "4"


@pytest.mark.parametrize(
    ("answer", "action"), [({"which": "a"}, "accept"), (None, "decline"), ({"x": 1}, "decline")]
)
async def test_a_servers_question_goes_to_a_person(
    open_box: Open, ctx: ToolContext, answer: dict[str, Json] | None, action: str
) -> None:
    person = _Person(answer)
    async with open_box("elicit", Ports(elicitor=person)) as box:
        told = json.loads(said(await box.run(call(box, ctx, "look"), ctx)))
    assert told["action"] == action
    assert person.asked == [("fake", "Which one?", Label.INTERNAL)]


async def test_a_server_samples_at_the_label_of_its_caller(
    open_box: Open, ctx: ToolContext
) -> None:
    model = _Person(None)
    private = replace(ctx, label=Label.PRIVATE)
    async with open_box("sample", Ports(sampler=model)) as box:
        told = json.loads(said(await box.run(call(box, private, "look"), private)))
    assert told["content"]["text"] == "4"
    assert model.asked == [("fake", "2+2?", Label.PRIVATE)]


async def test_a_server_samples_at_the_label_of_what_was_left_with_it(
    open_box: Open, ctx: ToolContext, tmp_path: Path
) -> None:
    model, clock = _Person(None), SystemClock()
    async with Database(tmp_path / "places") as database:
        places = PlaceLabels(Journal(database, clock))
        await places.raise_to(server_place("fake"), Label.PRIVATE)
        async with open_box("sample", Ports(sampler=model, places=places)) as box:
            outcome = await box.run(call(box, ctx, "look"), ctx)
    assert isinstance(outcome, ToolOutcome) and outcome.label is Label.PRIVATE
    assert model.asked == [("fake", "2+2?", Label.PRIVATE)]


async def kill_in_calls(
    box: Toolbox, ctx: ToolContext, folder: Path, times: int
) -> dict[str, float]:
    """Every call loses its server in the middle; counts what came of that."""
    lost = repeated = 0
    slowest_s = 0.0
    effects: list[str] = []
    for number in range(times):
        tool = "look" if number % 4 < 2 else "act"
        (folder / "armed").touch()
        started = time.monotonic()
        outcome = await box.run(call(box, ctx, tool, number), ctx)
        if tool == "look":
            lost += said(outcome) != f"look {number}"
        else:
            assert isinstance(outcome, InDoubt), outcome
            assert said(await box.run(call(box, ctx, "look", number), ctx)) == f"look {number}"
        slowest_s = max(slowest_s, time.monotonic() - started)
    if (folder / "effects").exists():
        effects = (folder / "effects").read_text().split()
    repeated = len(effects) - len(set(effects))
    begun = (folder / "calls").read_text().split()
    acted = [n for n in range(times) if n % 4 >= 2]
    repeated += sum(begun.count(str(n)) > 2 for n in acted)
    return {"lost": lost, "repeated": repeated, "slowest_s": slowest_s}


async def test_a_server_killed_in_mid_call_loses_no_read_and_repeats_no_write(
    open_box: Open, ctx: ToolContext, folder: Path
) -> None:
    async with open_box("kill_in_call") as box:
        told = await kill_in_calls(box, ctx, folder, times=8)
    assert (told["lost"], told["repeated"]) == (0, 0)


@pytest.mark.slow
async def test_a_server_killed_a_hundred_times(
    open_box: Open, ctx: ToolContext, folder: Path
) -> None:
    async with open_box("kill_in_call") as box:
        told = await kill_in_calls(box, ctx, folder, times=100)
    print(told)
    assert (told["lost"], told["repeated"]) == (0, 0)
    assert told["slowest_s"] < 2.0


async def test_a_writing_call_of_a_dead_daemon_is_in_doubt_only_if_it_was_sent(
    open_box: Open, ctx: ToolContext, folder: Path
) -> None:
    async with open_box("hang") as box:
        never, sent = call(box, ctx, "act", 1), call(box, ctx, "act", 2)
        running = asyncio.create_task(box.run(sent, ctx))
        await until(folder / "effects")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    async with open_box("hang") as box:
        assert isinstance(await box.adopt(never, ctx), NotStarted)
        assert isinstance(await box.adopt(sent, ctx), InDoubt)


async def test_an_answer_a_daemon_did_not_live_to_journal_is_found_again(
    open_box: Open, ctx: ToolContext, folder: Path
) -> None:
    async with open_box("good") as box:
        intent = call(box, ctx, "act", 5)
        await box.run(intent, ctx)
    async with open_box("good") as box:
        assert said(await box.adopt(intent, ctx)) == "act 5"
    assert (folder / "effects").read_text() == "5\n"


REAL = {
    "git": ("git__git_status", lambda folder: {"repo_path": str(folder)}, "nothing to commit"),
    "time": ("time__get_current_time", lambda _: {"timezone": "UTC"}, "UTC"),
    "filesystem": ("filesystem__list_directory", lambda f: {"path": str(f)}, "hello.txt"),
    "memory": ("memory__read_graph", lambda _: {}, "entities"),
    "everything": ("everything__echo", lambda _: {"message": "hello"}, "Echo: hello"),
}


def real_command(name: str, folder: Path) -> tuple[str, ...]:
    """The command of a real server in this environment; skips."""
    if name in ("git", "time"):
        program = Path(sys.executable).parent / f"mcp-server-{name}"
        if not program.exists():
            pytest.skip(f"mcp-server-{name} is not installed (extra dev)")
        extra = ("--repository", str(folder)) if name == "git" else ()
        return (str(program), *extra)
    npm = Path(sys.prefix) / "mcp-servers" / "node_modules" / ".bin" / f"mcp-server-{name}"
    if not npm.exists():
        pytest.skip(f"{npm.name} is not installed: scripts/test.sh does it where npm is")
    return (str(npm), str(folder)) if name == "filesystem" else (str(npm),)


@pytest.mark.parametrize("name", list(REAL))
async def test_real_servers_work_in_the_sandbox(
    tmp_path: Path, folder: Path, ctx: ToolContext, make_config: MakeConfig, name: str
) -> None:
    command = real_command(name, folder)
    if name == "git":
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
        for step in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
            process = await asyncio.create_subprocess_exec(*git, *step, cwd=folder)
            assert await process.wait() == 0
    else:
        (folder / "hello.txt").touch()
    server = McpConfig(command=command, paths=(str(folder),), start_timeout_s=30.0)
    config = make_config({name: server})
    tool, arguments, expected = REAL[name]
    async with Toolbox(lambda: config, tmp_path / "state", SystemClock()) as box:
        await box.learn("worker")
        intent = box.prepare(ToolCallBlock("c", tool, arguments(folder)), ctx)
        assert isinstance(intent, Intent), (intent, box.servers.report())
        assert expected in said(await box.run(intent, ctx))
