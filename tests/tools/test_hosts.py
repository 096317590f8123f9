"""The hosts an agent's shell may reach: through the sandbox, the bridge and the gate, for real."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from appliance.api.listen import bind_unix
from appliance.clock import SystemClock
from appliance.config.schema import Config
from appliance.config.tools import McpConfig
from appliance.egress.door import Egress
from appliance.egress.guard import Guard
from appliance.tools.ports import Ports
from appliance.tools.registry import Toolbox
from appliance.tools.sandbox.report import SandboxReport
from appliance.tools.types import Deny, Intent, ToolContext, ToolOutcome
from appliance.types import Json, Label, TextBlock, ToolCallBlock
from tests.engines.claude.rig import Lines
from tests.tools.conftest import FAKES, MakeConfig, until

HOST = "127.0.0.2"
"""A machine of its own as far as a program can tell: no name for the loopback means it."""

ASK = """exec 3<>/dev/tcp/127.0.0.1/3128 || exit 9
printf 'CONNECT {host}:{port} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' >&3
read -r status <&3; echo "$status"
"""


@dataclass
class Outside:
    """A server on `HOST` that says every line back, and a way to change the configuration."""

    port: int
    config: Config
    ctx: ToolContext
    lines: Lines = field(default_factory=Lines)
    heard: list[bytes] = field(default_factory=list)
    toolbox: Toolbox | None = None

    @property
    def box(self) -> Toolbox:
        assert self.toolbox is not None
        return self.toolbox

    async def shell(self, script: str, call_id: str = "c1", **ctx: object) -> ToolOutcome:
        around = replace(self.ctx, **ctx)  # type: ignore[arg-type]
        call = ToolCallBlock(call_id, "shell", {"command": f"exec bash -c '{_quoted(script)}'"})
        intent = self.box.prepare(call, around)
        assert isinstance(intent, Intent), intent
        outcome = await self.box.run(intent, around)
        assert isinstance(outcome, ToolOutcome), outcome
        return outcome

    def ask(self, host: str = HOST, port: int | None = None) -> str:
        return ASK.format(host=host, port=port or self.port)


def _quoted(script: str) -> str:
    return script.replace("'", "'\\''")


def said(outcome: ToolOutcome) -> str:
    block = outcome.content[0]
    assert isinstance(block, TextBlock)
    return block.text


@pytest.fixture
async def outside(
    tmp_path: Path,
    ctx: ToolContext,
    make_config: MakeConfig,
    sandboxes: dict[str, SandboxReport],
) -> AsyncIterator[Outside]:
    if sandboxes["bubblewrap"].mode != "bubblewrap":
        pytest.skip("; ".join(sandboxes["bubblewrap"].reasons))
    async with opened(tmp_path, ctx, make_config) as outside:
        yield outside


@asynccontextmanager
async def opened(
    tmp_path: Path, ctx: ToolContext, make_config: MakeConfig, sandbox: str = "bubblewrap"
) -> AsyncIterator[Outside]:
    heard: list[bytes] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(1 << 16):
            heard.append(piece)
            if piece.startswith((b"GET ", b"POST ")):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")
                break
            writer.write(piece)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, HOST, 0)
    port: int = server.sockets[0].getsockname()[1]
    hosts = [f"{HOST}:{port}", "*.nowhere.invalid"]
    config = make_config(
        tools={"sandbox": sandbox, "timeout_s": 20.0}, agent={"shell_hosts": hosts}
    )
    outside = Outside(port, config, replace(ctx, hosts=tuple(hosts)), heard=heard)
    egress = Egress(
        lambda: outside.config, outside.lines, SystemClock(), environment={}, guard=Guard()
    )
    state = tmp_path / "state"
    async with (
        server,
        egress.gate(bind_unix(tmp_path / "gate.sock", mode=0o600)) as gate,
        Toolbox(lambda: outside.config, state, SystemClock(), Ports(gate=gate)) as toolbox,
    ):
        outside.toolbox = toolbox
        yield outside


async def test_a_shell_reaches_a_host_it_was_given_and_the_audit_says_so(outside: Outside) -> None:
    outcome = await outside.shell(outside.ask() + "read -r _ <&3; echo word >&3; head -1 <&3")
    assert said(outcome) == "HTTP/1.1 200 Connection established\nword\n"
    (sent,), (received,) = outside.lines.of("egress.sent"), outside.lines.of("egress.received")
    assert (sent["host"], sent["purpose"]) == (f"{HOST}:{outside.port}", "shell:worker")
    assert (sent["agent"], sent["turn"], sent["label"]) == ("worker", "turn", "internal")
    assert (received["bytes_out"], received["bytes_in"]) == (5, 5)


async def test_any_other_host_is_refused_and_model_and_audit_are_told(outside: Outside) -> None:
    outcome = await outside.shell(outside.ask("example.org", 443) + "cat <&3")
    assert "403 Forbidden" in said(outcome)
    assert "example.org:443 is not an allowed host of shell:worker" in said(outcome)
    outcome = await outside.shell(outside.ask(port=1), "c2")
    assert f"(the network was refused: {HOST}:1 is not an allowed host" in said(outcome)
    assert len(outside.lines.of("egress.refused")) == 2
    assert outside.heard == []


async def test_private_data_gives_a_shell_no_way_out(outside: Outside) -> None:
    """The stand-in for another machine is loopback, where private data may go: so the name."""
    outcome = await outside.shell(outside.ask("packages.nowhere.invalid", 443), label=Label.PRIVATE)
    assert "private data must not leave for packages.nowhere.invalid:443" in said(outcome)


async def test_a_host_that_cannot_be_reached_is_a_bad_gateway(outside: Outside) -> None:
    outcome = await outside.shell(outside.ask("packages.nowhere.invalid", 443) + "cat <&3")
    assert "502 Bad Gateway" in said(outcome)
    assert "packages.nowhere.invalid:443 cannot be reached" in said(outcome)


async def test_past_the_proxy_there_is_nothing(outside: Outside) -> None:
    script = f"exec 3<>/dev/tcp/{HOST}/{outside.port}"
    outcome = await outside.shell(f"({script}) 2>&1; (exec 3<>/dev/tcp/192.0.2.1/80) 2>&1")
    assert "Connection refused" in said(outcome) and "unreachable" in said(outcome)
    assert outside.heard == []
    listening = await outside.shell("cat /proc/net/tcp | wc -l; ls /proc | grep -c ^[0-9]", "c2")
    assert int(said(listening).split()[0]) <= 2


async def test_much_goes_through_in_both_directions(outside: Outside) -> None:
    lines = 300_000
    script = (
        outside.ask()
        + f"read -r _ <&3; seq 1 {lines} >&3 & head -n {lines} <&3 | sha256sum; "
        + f"seq 1 {lines} | sha256sum"
    )
    one, other = said(await outside.shell(script)).splitlines()[1:]
    assert one == other


async def test_plain_http_is_asked_as_a_server_is_asked(outside: Outside) -> None:
    script = f"""exec 3<>/dev/tcp/127.0.0.1/3128
printf 'GET http://{HOST}:{outside.port}/a?b HTTP/1.1\\r\\nHost: other\\r\\n' >&3
printf 'Proxy-Authorization: x\\r\\nAccept: */*\\r\\nConnection: keep-alive\\r\\n\\r\\n' >&3
cat <&3"""
    assert said(await outside.shell(script)).endswith("hello\n")
    told = b"".join(outside.heard).decode()
    host = f"Host: {HOST}:{outside.port}"
    assert told == f"GET /a?b HTTP/1.1\r\n{host}\r\nAccept: */*\r\nConnection: close\r\n\r\n"


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
async def test_a_client_that_knows_proxies_needs_to_be_told_nothing(outside: Outside) -> None:
    url = f"http://{HOST}:{outside.port}/x"
    assert said(await outside.shell(f"curl -sS {url}")) == "hello\n"


async def test_closing_a_host_ends_connections_that_are_open(outside: Outside) -> None:
    script = outside.ask() + "echo one >&3; read -r _ <&3; read -r back <&3; touch open; cat go; "
    script += "echo two >&3; cat <&3; echo over"
    await outside.shell("mkfifo go", "c0")
    running = asyncio.create_task(outside.shell(script))
    await until(outside.ctx.workspace / "open")
    outside.config = _without_hosts(outside.config)
    await asyncio.to_thread((outside.ctx.workspace / "go").write_text, "")
    outcome = await running
    assert "over" in said(outcome) and "is not an allowed host" in said(outcome)
    assert b"two" not in b"".join(outside.heard)


def _without_hosts(config: Config) -> Config:
    agents = dict(config.agents)
    agents["worker"] = agents["worker"].model_copy(update={"shell_hosts": ()})
    return config.model_copy(update={"agents": agents})


async def test_a_daemon_that_comes_back_opens_the_way_again(outside: Outside) -> None:
    """The call goes on while no daemon is there; the next one finds and admits it."""
    outside.ctx.workspace.mkdir()
    script = "touch begun; while ! test -e back; do sleep 0.05; done; " + outside.ask()
    running = asyncio.create_task(outside.shell(script))
    await until(outside.ctx.workspace / "begun")
    running.cancel()
    await asyncio.wait([running])
    call = ToolCallBlock("c1", "shell", {"command": f"exec bash -c '{_quoted(script)}'"})
    intent = outside.box.prepare(call, outside.ctx)
    assert isinstance(intent, Intent)
    adopting = asyncio.create_task(outside.box.adopt(intent, outside.ctx))
    (outside.ctx.workspace / "back").touch()
    outcome = await adopting
    assert isinstance(outcome, ToolOutcome)
    assert "200 Connection established" in said(outcome)


async def test_model_and_person_are_told_what_a_shell_reaches(outside: Outside) -> None:
    (spec,) = (spec for spec in outside.box.specs("worker") if spec.name == "shell")
    assert f"it reaches {HOST}:{outside.port}, *.nowhere.invalid" in spec.description
    call: dict[str, Json] = {"command": "true"}
    asked = outside.box.prepare(ToolCallBlock("c", "shell", call), outside.ctx)
    closed = outside.box.prepare(ToolCallBlock("c", "shell", call), replace(outside.ctx, hosts=()))
    assert isinstance(asked, Intent) and isinstance(closed, Intent)
    assert "it may reach" in asked.summary and "reach" not in closed.summary
    assert asked.call_hash != closed.call_hash


async def test_an_mcp_program_reaches_its_hosts_and_never_with_private_data(
    outside: Outside, tmp_path: Path
) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    outside.config = outside.config.model_copy(
        update={
            "mcp": {
                "fake": McpConfig(
                    command=(sys.executable, str(FAKES / "server.py"), "visit", str(folder)),
                    hosts=(f"{HOST}:{outside.port}",),
                    paths=(str(folder),),
                )
            },
            "agents": {
                **outside.config.agents,
                "worker": outside.config.agents["worker"].model_copy(update={"mcp": ("fake",)}),
            },
        }
    )
    await outside.box.learn("worker")
    call = ToolCallBlock("c1", "fake__look", {"n": outside.port})
    intent = outside.box.prepare(call, outside.ctx)
    assert isinstance(intent, Intent), intent
    outcome = await outside.box.run(intent, outside.ctx)
    assert isinstance(outcome, ToolOutcome) and said(outcome) == "hello\n"
    (sent,) = outside.lines.of("egress.sent")
    assert (sent["purpose"], sent["label"]) == ("program:fake", "internal")
    verdict = outside.box.decide(intent, replace(outside.ctx, label=Label.PRIVATE))
    assert isinstance(verdict, Deny) and "sends data away" in verdict.reason


async def test_landlock_alone_gives_no_hosts(
    tmp_path: Path, ctx: ToolContext, make_config: MakeConfig, sandboxes: dict[str, SandboxReport]
) -> None:
    if sandboxes["landlock"].mode != "landlock":
        pytest.skip("; ".join(sandboxes["landlock"].reasons))
    async with opened(tmp_path, ctx, make_config, "landlock") as outside:
        (spec,) = (spec for spec in outside.box.specs("worker") if spec.name == "shell")
        assert "no network" in spec.description
        outcome = await outside.shell("(exec 3<>/dev/tcp/127.0.0.1/3128) 2>&1; env")
        assert "3128" in said(outcome) and "proxy" not in said(outcome)
