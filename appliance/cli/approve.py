"""`appliance approvals`, and the same questions answered live inside `ask` and `chat`."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.markup import escape

from appliance.cli.client import Client
from appliance.cli.shared import JsonFlag, age, ask_daemon, clean, err, out, print_json, print_table

app = typer.Typer(no_args_is_help=True, help="Questions of agents that wait for a person.")

_KEYS = {"y": "allow_once", "a": "allow_always", "n": "reject_once", "never": "reject_always"}


@app.command("list")
def list_approvals(
    context: typer.Context,
    every: Annotated[bool, typer.Option("--all", help="Answered ones too.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """What waits for an answer.

    Example: appliance approvals list
    """
    status = "" if every else "pending"
    found = ask_daemon(context, lambda client: client.get("/api/approvals", status=status))
    if as_json:
        print_json(found["approvals"])
        return
    now_ms = time.time_ns() // 1_000_000
    print_table(
        ("id", "agent", "tool", "status", "asked", "what"),
        [(row["id"], row["agent"], row["tool"], row["status"], age(row["created_ms"], now_ms),
          row["summary"].splitlines()[0][:60] if row["summary"] else "")
         for row in found["approvals"]],
        "nothing waits",
    )  # fmt: skip


@app.command()
def show(context: typer.Context, approval: str, as_json: JsonFlag = False) -> None:
    """Exactly what would run.

    Example: appliance approvals show appr_…
    """
    found = ask_daemon(context, lambda client: client.get(f"/api/approvals/{approval}"))
    if as_json:
        print_json(found)
        return
    out.print(f"[bold]{escape(found['agent'])}[/bold] asks for {escape(found['tool'])} "
              f"({found['status']})")  # fmt: skip
    out.print(escape(clean(found["summary"])), soft_wrap=True)


@app.command()
def allow(
    context: typer.Context,
    approval: str,
    always: Annotated[bool, typer.Option(help="And every call like it.")] = False,
    note: Annotated[str, typer.Option(help="Told to the agent.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Let it run.

    Example: appliance approvals allow appr_…
    """
    _answer(context, approval, "allow_always" if always else "allow_once", note, as_json)


@app.command()
def deny(
    context: typer.Context,
    approval: str,
    always: Annotated[bool, typer.Option(help="And every call like it.")] = False,
    note: Annotated[str, typer.Option(help="Told to the agent.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Do not let it run.

    Example: appliance approvals deny appr_… --note "use the staging host"
    """
    _answer(context, approval, "reject_always" if always else "reject_once", note, as_json)


def _answer(context: typer.Context, approval: str, decision: str, note: str, as_json: bool) -> None:
    body = {"decision": decision, "note": note}
    done = ask_daemon(context, lambda client: client.post(f"/api/approvals/{approval}", body))
    if as_json:
        print_json(done)
    else:
        out.print(f"{done['tool']}: {done['status']}")


async def answer_live(client: Client, asked: Mapping[str, Any], *, interactive: bool) -> None:
    """Put a question of a running turn to the person at the terminal, if there is one."""
    approval = asked["approval_id"]
    if not interactive or not sys.stdin.isatty():
        err.print(f"[yellow]waits for: appliance approvals allow {approval}[/yellow]")
        return
    err.print(f"\n[bold]May {escape(asked['tool'])} run?[/bold]")
    err.print(escape(clean(asked["summary"])), soft_wrap=True)
    answer = ""
    while answer not in _KEYS:
        line = await asyncio.to_thread(input, "[y]es once, [a]lways, [n]o, never: ")
        answer = line.strip().lower()
    await client.post(f"/api/approvals/{approval}", {"decision": _KEYS[answer]})
