"""`appliance chat`: a session at the terminal. Ctrl-C cancels the turn, Ctrl-D ends the chat."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.ask import Watcher
from appliance.cli.client import Client
from appliance.cli.shared import Exit, ask_daemon, err
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession


def chat(
    context: typer.Context,
    agent: Annotated[str, typer.Argument(help="Name of the agent.")] = "assistant",
    session: Annotated[str | None, typer.Option(help="Go on in this session.")] = None,
) -> None:
    """Talk with an agent; it remembers what was said.

    Example: appliance chat assistant
    """

    async def work(client: Client) -> int:
        current = session
        if current is None:
            current = (await client.post("/api/sessions", {"agent": agent}))["id"]
        err.print(f"[dim]session {current} · Ctrl-C cancels a turn, Ctrl-D ends the chat[/dim]")
        prompt = _prompt()
        while True:
            try:
                text = await prompt.prompt_async(f"{agent}> ")
            except KeyboardInterrupt:
                continue
            except EOFError:
                return Exit.OK
            if text.strip():
                await _turn(client, current, text)

    raise typer.Exit(ask_daemon(context, work))


async def _turn(client: Client, session: str, text: str) -> None:
    """One turn, as a task of its own so that Ctrl-C ends it and not the program."""
    try:
        started = await client.post(f"/api/sessions/{session}/turns", {"text": text})
    except ApplianceError as error:
        err.print(f"[red]{error.message}[/red]")
        return
    watching = asyncio.ensure_future(Watcher(client, as_json=False).watch(started["turn"]))
    try:
        with _interrupts(watching):
            await watching
    except asyncio.CancelledError:
        await client.post(f"/api/turns/{started['turn']}/cancel")
        err.print("\n[dim]cancelled[/dim]")


@contextmanager
def _interrupts(task: asyncio.Future[int]) -> Iterator[None]:
    """While inside, SIGINT cancels the given task."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _prompt() -> PromptSession[str]:
    """A prompt with this user's earlier lines; only of this chat where no file can be kept."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    folder = Path.home() / ".local" / "state" / "appliance"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return PromptSession(history=InMemoryHistory())
    return PromptSession(history=FileHistory(str(folder / "chat_history")))
