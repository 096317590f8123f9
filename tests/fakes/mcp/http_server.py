"""A real MCP server over streamable HTTP, built with the official SDK.

    python http_server.py <folder> [<bearer token>]

Serves http://127.0.0.1:<port>/mcp and writes the port to `<folder>/port`; keeps `<folder>/port`
over restarts, so that it comes back where it was. `calls` and `effects` in the folder get a line
each per call begun and effect had. While `armed` exists, the next call removes it and dies in the
middle. Tools: `look` (read only), `act` (an effect), `choose` (asks a person), `think` (asks a
model).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp_types import SamplingMessage, TextContent, ToolAnnotations
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

FOLDER = Path(sys.argv[1])
TOKEN = sys.argv[2] if len(sys.argv) > 2 else ""
server = MCPServer("fake")


def note(name: str, value: object) -> None:
    with (FOLDER / name).open("a") as file:
        file.write(f"{value}\n")
        file.flush()
        os.fsync(file.fileno())


def begun(number: int) -> None:
    note("calls", number)
    with contextlib.suppress(FileNotFoundError):
        (FOLDER / "armed").unlink()
        os.kill(os.getpid(), signal.SIGKILL)


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def look(n: int) -> str:
    """Look at n."""
    begun(n)
    return f"look {n}"


@server.tool()
def act(n: int) -> str:
    """Do something about n."""
    begun(n)
    note("effects", n)
    return f"act {n}"


class Choice(BaseModel):
    which: str


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
async def choose(context: Context[Any, Any]) -> str:
    """Ask a person."""
    answer = await context.elicit("Which one?", Choice)
    return f"{answer.action} {answer.data.which if answer.action == 'accept' else ''}"


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
async def think(context: Context[Any, Any]) -> str:
    """Ask a model."""
    said = SamplingMessage(role="user", content=TextContent(type="text", text="2+2?"))
    answer = await context.session.create_message([said], max_tokens=10)
    assert isinstance(answer.content, TextContent)
    return f"the model said {answer.content.text}"


def _authorization(scope: Scope) -> str | None:
    return Request(scope).headers.get("authorization")


class Guarded:
    """Lets nobody in without the token."""

    def __init__(self, inner: ASGIApp) -> None:
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        told = f"Bearer {TOKEN}"
        if scope["type"] == "http" and TOKEN and _authorization(scope) != told:
            refused: Response = PlainTextResponse("no", status_code=401)
            await refused(scope, receive, send)
            return
        await self._inner(scope, receive, send)


def main() -> None:
    kept = FOLDER / "port"
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(kept.read_text()) if kept.exists() else 0))
    listener.listen()
    draft = FOLDER / "port.new"
    draft.write_text(str(listener.getsockname()[1]))
    draft.rename(kept)
    app = Guarded(server.streamable_http_app())
    config = uvicorn.Config(app, log_level="warning")
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
