"""`appliance ask`: one question to an agent, the answer streamed as it comes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.markup import escape

from appliance.cli.approve import answer_live, question_live
from appliance.cli.client import Client
from appliance.cli.shared import (
    Exit,
    JsonFlag,
    ask_daemon,
    clean,
    err,
    exit_code_of,
    print_json,
)

ENDED = frozenset({"turn.completed", "turn.failed", "turn.cancelled"})


def ask(
    context: typer.Context,
    agent: Annotated[str, typer.Argument(help="Name of the agent (appliance agents).")],
    text: Annotated[list[str], typer.Argument(help="The question; - reads standard input.")],
    session: Annotated[str | None, typer.Option(help="Go on in this session.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    policy: Annotated[str | None, typer.Option(help="Overrides the agent's policy.")] = None,
    label: Annotated[str | None, typer.Option(help="public, internal or private.")] = None,
    detach: Annotated[bool, typer.Option(help="Start the turn and print its id.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Ask an agent, and watch it answer.

    Example: appliance ask assistant "What does fsync promise?"
    """
    question = " ".join(text)
    if question == "-":
        question = sys.stdin.read()
    body = {"agent": agent, "text": question, "session": session, "model": model,
            "policy": policy, "label": label}  # fmt: skip

    async def work(client: Client) -> int:
        started = await client.post("/api/turns", {k: v for k, v in body.items() if v is not None})
        if detach:
            print_json(started) if as_json else print(started["turn"])
            return Exit.OK
        watcher = Watcher(client, as_json=as_json)
        return await watcher.watch_or_cancel(started["turn"])

    raise typer.Exit(ask_daemon(context, work))


class Watcher:
    """Shows one turn as it happens: the answer on stdout, everything else on stderr."""

    def __init__(self, client: Client, *, as_json: bool) -> None:
        self._client = client
        self._as_json = as_json
        self._written = ""
        self._progress = ""

    async def watch_or_cancel(self, turn: str) -> int:
        """Follow a turn to its end; Ctrl-C cancels the turn. Returns the exit code."""
        try:
            return await self.watch(turn)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
            await self._client.post(f"/api/turns/{turn}/cancel")
            err.print("\n[dim]cancelled[/dim]")
            return Exit.FAILED

    async def watch(self, turn: str) -> int:
        async for item in self._client.follow(turn):
            if self._as_json:
                print_json(item)
            else:
                self._show(item)
            if item["type"] == "approval.asked":
                await answer_live(self._client, item, interactive=not self._as_json)
            if item["type"] == "question.asked":
                await question_live(self._client, item, interactive=not self._as_json)
            if item["type"] in ENDED:
                return self._end(item)
        err.print("[red]the daemon stopped; the turn goes on when it is back[/red]")
        return Exit.UNREACHABLE

    def _show(self, item: Mapping[str, Any]) -> None:
        match item["type"]:
            case "progress":
                self._say_progress(item)
            case "delta" if item["kind"] == "text":
                self._write(item["text"])
            case "delta" if item["kind"] == "thinking":
                self._clear_progress()
                err.print(f"[dim italic]{escape(clean(item['text']))}[/dim italic]", end="")
            case "step.failed" | "step.escalated":
                reason = item.get("reason") or item["error"]["message"]
                self._break()
                err.print(f"[yellow]{escape(clean(reason))}[/yellow]")
            case "step.completed":
                self._write(_unseen(item, self._written))
                self._break()
            case "tool.intended":
                self._break()
                err.print(f"[cyan]{escape(clean(item['summary']))}[/cyan]")
            case "tool.completed" if item["result"].get("is_error"):
                said = "".join(part.get("text", "") for part in item["result"]["content"])
                err.print(f"[yellow]{escape(clean(said[:500]))}[/yellow]")

    def _say_progress(self, item: Mapping[str, Any]) -> None:
        if self._written:
            return
        words = {"queued": "waiting for a slot", "loading": "loading the model",
                 "prefill": "reading the prompt"}  # fmt: skip
        text = words.get(item["stage"], item["stage"])
        if sys.stderr.isatty() and item["stage"] != "queued" and item["total"]:
            text += f" {item['done'] / item['total']:.0%}"
        if sys.stderr.isatty():
            self._progress = text
            err.print(f"\r[dim]{text} …[/dim]\033[K", end="")
        elif text != self._progress:
            self._progress = text
            err.print(f"[dim]{text} …[/dim]")

    def _clear_progress(self) -> None:
        if self._progress and sys.stderr.isatty():
            err.print("\r\033[K", end="")
        self._progress = ""

    def _write(self, text: str) -> None:
        if not text:
            return
        self._clear_progress()
        self._written += text
        sys.stdout.write(clean(text))
        sys.stdout.flush()

    def _break(self) -> None:
        """The next thing starts on a line of its own."""
        self._clear_progress()
        if self._written and not self._written.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()
        self._written = ""

    def _end(self, item: Mapping[str, Any]) -> int:
        self._break()
        if item["type"] == "turn.completed":
            if not self._as_json:
                err.print(f"[dim]{escape(summary(item))}[/dim]", soft_wrap=True)
            return Exit.OK
        error = item.get("error", {"message": item.get("reason", ""), "code": "cancelled"})
        if not self._as_json:
            err.print(f"[red]{escape(clean(error['message']))}[/red]", soft_wrap=True)
            if error.get("hint"):
                err.print(f"[dim]→ {escape(clean(error['hint']))}[/dim]", soft_wrap=True)
        code = exit_code_of(error["code"])
        return Exit.FAILED if code is Exit.USAGE else code


def summary(item: Mapping[str, Any]) -> str:
    """One line about a finished turn: where it ran, how fast, what it cost."""
    usage = item["usage"]
    parts = [str(item["route"].get("target", "")), f"{usage.get('output_tokens', 0)} tokens"]
    if usage.get("decode_ms"):
        parts.append(f"{usage['output_tokens'] * 1000 / usage['decode_ms']:.1f} tokens/s")
    if usage.get("spend_micro_usd"):
        parts.append(f"${usage['spend_micro_usd'] / 1_000_000:.4f}")
    return " · ".join([*parts, f"appliance explain {item['turn']}"])


def _unseen(item: Mapping[str, Any], written: str) -> str:
    """The text of a completed step, where none of it came as deltas."""
    if written:
        return ""
    blocks = item["message"]["blocks"]
    return "".join(block["text"] for block in blocks if block["type"] == "text")
