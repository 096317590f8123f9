"""A hostile MCP server at a URL: it may stall nothing, lead nowhere, and fill no memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.clock import SystemClock
from appliance.config.tools import McpConfig
from appliance.daemon.outside import EgressHttp
from appliance.egress.door import Egress
from appliance.egress.guard import Guard
from appliance.tools.ports import Ports
from appliance.tools.registry import Toolbox
from appliance.tools.types import InDoubt, Intent, ToolContext, ToolOutcome
from appliance.types import TextBlock, ToolCallBlock
from tests.egress.test_door import Lines
from tests.tools.conftest import MakeConfig

LIMIT_S = 60.0
"""No server may hold a call longer than this; its own limit is `timeout_s`."""

TOOL = {
    "name": "look",
    "description": "Look.",
    "inputSchema": {"type": "object", "properties": {}},
    "annotations": {"readOnlyHint": True},
}

Writer = asyncio.StreamWriter
Say = Callable[[Writer, Any], Awaitable[None]]


def head(status: str, **headers: object) -> bytes:
    lines = [f"HTTP/1.1 {status}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


async def answer_json(writer: Writer, body: Any, **headers: object) -> None:
    data = json.dumps(body).encode()
    told = {"Content_Type": "application/json", "Content_Length": len(data), **headers}
    writer.write(head("200 OK", **told) + data)
    await writer.drain()


def result(request: Any, value: str = "seen") -> dict[str, Any]:
    content = [{"type": "text", "text": value}]
    return {"jsonrpc": "2.0", "id": request["id"], "result": {"content": content}}


async def redirect(writer: Writer, request: Any) -> None:
    writer.write(head("307 Temporary", Location="http://127.0.0.9:1/mcp", Content_Length=0))


async def unauthorized(writer: Writer, request: Any) -> None:
    writer.write(head("401 No", WWW_Authenticate='Bearer resource="x"', Content_Length=0))


async def other_session(writer: Writer, request: Any) -> None:
    await answer_json(writer, result(request), Mcp_Session_Id="somebody-else")


async def endless_events(writer: Writer, request: Any) -> None:
    writer.write(head("200 OK", Content_Type="text/event-stream"))
    note = {"jsonrpc": "2.0", "method": "notifications/message",
            "params": {"level": "info", "data": "x"}}  # fmt: skip
    while True:
        writer.write(b"event: message\ndata: " + json.dumps(note).encode() + b"\n\n")
        await writer.drain()


async def endless_line(writer: Writer, request: Any) -> None:
    writer.write(head("200 OK", Content_Type="text/event-stream") + b"data: ")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def huge(writer: Writer, request: Any) -> None:
    writer.write(head("200 OK", Content_Type="application/json", Content_Length=1 << 30))
    while True:
        writer.write(b" " * 65536)
        await writer.drain()


async def bomb(writer: Writer, request: Any) -> None:
    packing = zlib.compressobj(9, wbits=31)
    data = b"".join(packing.compress(b" " * (1 << 20)) for _ in range(256)) + packing.flush()
    told = {"Content_Encoding": "gzip", "Content_Length": len(data)}
    writer.write(head("200 OK", Content_Type="application/json", **told) + data)
    await writer.drain()


async def slow(writer: Writer, request: Any) -> None:
    """A byte now and then, for ever: the answer's head never ends."""
    while True:
        writer.write(b"H")
        await writer.drain()
        await asyncio.sleep(0.05)


async def cut(writer: Writer, request: Any) -> None:
    writer.write(head("200 OK", Content_Type="application/json", Content_Length=1000) + b'{"js')
    await writer.drain()


async def not_json(writer: Writer, request: Any) -> None:
    body = b"<html>login</html>"
    writer.write(head("200 OK", Content_Type="text/html", Content_Length=len(body)) + body)


async def other_id(writer: Writer, request: Any) -> None:
    await answer_json(writer, {**result(request), "id": 424242})


async def twice(writer: Writer, request: Any) -> None:
    said = [result(request, "first"), result(request, "second")]
    events = b"".join(b"event: message\ndata: " + json.dumps(r).encode() + b"\n\n" for r in said)
    writer.write(head("200 OK", Content_Type="text/event-stream", Connection="close") + events)


BEHAVIOURS = (
    redirect, unauthorized, other_session, endless_events, endless_line, huge, bomb, slow, cut,
    not_json, other_id, twice,
)  # fmt: skip
WORKS = {"other_session": "seen", "twice": "first"}


@asynccontextmanager
async def serving(misbehave: Say) -> AsyncIterator[int]:
    """A server that shakes hands, lists one tool, and misbehaves when that is called."""

    async def connected(reader: asyncio.StreamReader, writer: Writer) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                if lines.startswith(("get", "delete")):
                    writer.write(head("405 No", Content_Length=0))
                    continue
                length = int(lines.split("content-length: ")[1].split("\r\n")[0])
                request = json.loads(await reader.readexactly(length))
                if "id" not in request:
                    writer.write(head("202 Accepted", Content_Length=0))
                elif request["method"] == "initialize":
                    told = {"protocolVersion": request["params"]["protocolVersion"],
                            "capabilities": {"tools": {}},
                            "serverInfo": {"name": "x", "version": "1"}}  # fmt: skip
                    body = {"jsonrpc": "2.0", "id": request["id"], "result": told}
                    await answer_json(writer, body, Mcp_Session_Id="ours")
                elif request["method"] == "tools/list":
                    body = {"jsonrpc": "2.0", "id": request["id"], "result": {"tools": [TOOL]}}
                    await answer_json(writer, body)
                elif request["method"] == "ping":
                    body = {"jsonrpc": "2.0", "id": request["id"], "result": {}}
                    await answer_json(writer, body)
                else:
                    await misbehave(writer, request)
                    break
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.mark.parametrize("misbehave", BEHAVIOURS, ids=lambda each: each.__name__)
async def test_a_bad_answer_over_http_is_an_error_in_time_and_fills_no_memory(
    tmp_path: Path, ctx: ToolContext, make_config: MakeConfig, misbehave: Say
) -> None:
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with serving(misbehave) as port:
        server = McpConfig(
            url=f"http://127.0.0.1:{port}/mcp",
            timeout_s=30.0 if misbehave.__name__ in WORKS else 1.0,
            start_timeout_s=60.0,
        )
        config = make_config({"fake": server})
        egress = Egress(lambda: config, Lines(), SystemClock(), environment={}, guard=Guard())
        ports = Ports(http=EgressHttp(egress, lambda: config))
        async with Toolbox(lambda: config, tmp_path / "state", SystemClock(), ports) as box:
            await box.learn("worker")
            intent = box.prepare(ToolCallBlock("c", "fake__look", {}), ctx)
            assert isinstance(intent, Intent), (intent, box.servers.report())
            async with asyncio.timeout(LIMIT_S):
                outcome = await box.run(intent, ctx)
    assert not isinstance(outcome, InDoubt)
    assert isinstance(outcome, ToolOutcome)
    block = outcome.content[0]
    assert isinstance(block, TextBlock)
    name = misbehave.__name__
    assert (outcome.is_error, name in WORKS) in ((True, False), (False, True)), block.text
    assert WORKS.get(name, "") in block.text
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    assert grown_kib < 160 << 10
