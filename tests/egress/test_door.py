"""The door over real sockets: lent clients, the process-wide guard, and both event loops."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from appliance.clock import SystemClock
from appliance.egress.door import Egress
from appliance.egress.errand import Errand, on_errand
from appliance.egress.guard import Guard
from appliance.egress.rules import Purpose
from appliance.errors import EgressDenied
from appliance.types import Label
from tests.engines.claude.rig import Lines, config_for
from tests.fakes.claude.running import Claude

REPOSITORY = Path(__file__).resolve().parents[2]


def door(url: str, lines: Lines, **network: object) -> Egress:
    config = config_for(url, network=network)
    return Egress(
        lambda: config, lines, SystemClock(), environment={"ANTHROPIC_API_KEY": "k"}, guard=Guard()
    )


async def test_each_request_leaves_a_line_with_who_what_and_how_much(claude: Claude) -> None:
    lines = Lines()
    egress = door(claude.url, lines)
    async with egress.client(Purpose("model", "claude")) as client:
        with on_errand(Errand(Label.INTERNAL, "backend", "turn_1")):
            answer = await client.post(f"{claude.url}/v1/messages", content=b"12345")
    (sent,), (received,) = lines.of("egress.sent"), lines.of("egress.received")
    assert sent["agent"] == "backend" and sent["turn"] == "turn_1" and sent["label"] == "internal"
    assert sent["bytes_out"] == 5
    assert received["bytes_in"] == len(answer.content) and received["status"] == 401
    assert egress.rate_limit_tokens_left("claude") == 400_000


async def test_a_host_that_nobody_allowed_is_refused_before_a_byte_leaves(claude: Claude) -> None:
    lines = Lines()
    async with door(claude.url, lines).client(Purpose("tool", "fetch")) as client:
        with on_errand(Errand(Label.PUBLIC)), pytest.raises(EgressDenied):
            await client.get(f"{claude.url}/v1/models")
    async with door(claude.url, lines).client(Purpose("model", "claude")) as client:
        with pytest.raises(EgressDenied, match="no label"):
            await client.get(f"{claude.url}/v1/models")
    assert len(lines.of("egress.refused")) == 2
    assert claude.log.read_bytes() == b""


async def test_a_redirect_is_not_followed() -> None:
    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 302 Found\r\nlocation: http://evil.example/\r\ncontent-length: 0\r\n\r\n"
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(redirect, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, door(url, Lines()).client(Purpose("model", "claude")) as client:
        with on_errand(Errand(Label.PUBLIC)):
            answer = await client.get(f"{url}/")
    assert answer.status_code == 302


async def test_under_air_gap_names_are_not_even_looked_up() -> None:
    lines = Lines()
    egress = door("http://api.example.org", lines, air_gap=True)
    assert not egress.permits("claude")
    async with egress.client(Purpose("model", "claude")) as client:
        with on_errand(Errand(Label.PUBLIC)), pytest.raises(EgressDenied, match="air gap"):
            await client.get("http://api.example.org/")


async def test_a_refused_connection_is_an_error_callers_know() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        async with door(url, Lines()).client(Purpose("model", "claude")) as client:
            with on_errand(Errand(Label.PUBLIC)), pytest.raises(httpx2.ConnectError):
                await client.get(f"{url}/")


GUARDED = """
import asyncio, socket, sys, urllib.request
from appliance.egress.guard import PROCESS_GUARD, guarded_loop
PROCESS_GUARD.install()
refused = []

def tried(name, call):
    try:
        call()
    except PermissionError:
        refused.append(name)
    except OSError as error:
        print(name, "got through:", error)

def udp():
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53))

tried("connect", lambda: socket.create_connection(("192.0.2.1", 80), timeout=0.1))
tried("lookup", lambda: socket.getaddrinfo("example.org", 80))
tried("udp", udp)

async def by_loop():
    loop = asyncio.get_running_loop()
    for name, call in {
        "loop connect": lambda: loop.create_connection(asyncio.Protocol, "192.0.2.1", 80),
        "loop name": lambda: loop.create_connection(asyncio.Protocol, host="example.org", port=80),
        "loop lookup": lambda: loop.getaddrinfo("example.org", 80),
        "loop udp": lambda: loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=("192.0.2.1", 53)),
    }.items():
        try:
            await call()
        except PermissionError:
            refused.append(name)
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.close()
    refused.append("loopback is free")

import uvloop
uvloop.run(by_loop(), loop_factory=guarded_loop)
print("|".join(refused), PROCESS_GUARD.refused)
"""


def test_the_guard_refuses_what_did_not_come_through_the_door_on_either_way() -> None:
    done = subprocess.run(
        [sys.executable, "-c", GUARDED], capture_output=True, text=True, cwd=REPOSITORY, timeout=60
    )
    assert done.returncode == 0, done.stderr
    names = "connect|lookup|udp|loop connect|loop name|loop lookup|loop udp|loopback is free"
    assert done.stdout.strip() == f"{names} 7"


def test_a_pass_is_for_one_address_while_it_is_held() -> None:
    guard = Guard()
    with guard.passing("192.0.2.1", 443), guard.resolving("example.org"):
        guard.check_address("192.0.2.1", 443)
        guard.check_name("example.org")
        with pytest.raises(PermissionError):
            guard.check_address("192.0.2.1", 80)
    with pytest.raises(PermissionError):
        guard.check_address("192.0.2.1", 443)
    with pytest.raises(PermissionError):
        guard.check_name("example.org")
