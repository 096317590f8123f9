"""Commands that show what is there: sessions, turns, agents, explain, route, budget, doctor."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.markup import escape

from appliance.cli.shared import (
    Exit,
    JsonFlag,
    age,
    ask_daemon,
    clean,
    out,
    print_json,
    print_table,
)

Limit = Annotated[int, typer.Option(min=1, max=1000, help="Rows at most.")]


def sessions(
    context: typer.Context,
    session: Annotated[str | None, typer.Argument(help="Show this one.")] = None,
    limit: Limit = 20,
    as_json: JsonFlag = False,
) -> None:
    """List sessions, or show what was said in one.

    Example: appliance sessions
    """
    if session is not None:
        found = ask_daemon(context, lambda client: client.get(f"/api/sessions/{session}"))
        print_json(found) if as_json else _print_messages(found["messages"])
        return
    found = ask_daemon(context, lambda client: client.get("/api/sessions", limit=limit))
    if as_json:
        print_json(found["sessions"])
        return
    now_ms = time.time_ns() // 1_000_000
    print_table(
        ("session", "agent", "last", "title"),
        [(row["id"], row["agent"], age(row["updated_ms"], now_ms), row["title"][:40])
         for row in found["sessions"]],
        "no sessions yet: appliance ask assistant …",
    )  # fmt: skip


def turns(
    context: typer.Context,
    turn: Annotated[str | None, typer.Argument(help="Show this one.")] = None,
    session: Annotated[str | None, typer.Option(help="Only of this session.")] = None,
    status: Annotated[str | None, typer.Option(help="Only in these states (a,b).")] = None,
    in_doubt: Annotated[bool, typer.Option(help="Only with a call of unknown outcome.")] = False,
    cancel: Annotated[bool, typer.Option(help="Cancel the turn named.")] = False,
    limit: Limit = 20,
    as_json: JsonFlag = False,
) -> None:
    """List turns, show one, or cancel one.

    Example: appliance turns --status running,queued
    """
    if turn is not None and cancel:
        done = ask_daemon(context, lambda client: client.post(f"/api/turns/{turn}/cancel"))
        print_json(done) if as_json else out.print(
            "cancelled" if done["cancelled"] else "it had ended already"
        )
        return
    if turn is not None:
        found = ask_daemon(context, lambda client: client.get(f"/api/turns/{turn}"))
        print_json(found) if as_json else _print_turn(found)
        return
    wanted = "in_doubt" if in_doubt else status
    found = ask_daemon(
        context,
        lambda client: client.get("/api/turns", session=session, status=wanted, limit=limit),
    )
    if as_json:
        print_json(found["turns"])
        return
    now_ms = time.time_ns() // 1_000_000
    print_table(
        ("turn", "agent", "status", "started"),
        [(row["id"], row["agent"], row["status"], age(row["created_ms"], now_ms))
         for row in found["turns"]],
        "no turns",
    )  # fmt: skip


def explain(
    context: typer.Context,
    subject: Annotated[
        str,
        typer.Argument(help="A turn id, a model's name, load, eviction, refusal, crash, or all."),
    ],
    as_json: JsonFlag = False,
) -> None:
    """Why a turn ran where it did, or why a model was loaded, evicted or refused.

    Example: appliance explain turn_…, or: appliance explain eviction
    """
    path = f"/api/turns/{subject}/explain" if subject.startswith("turn_") else (
        f"/api/decisions/{subject}"
    )  # fmt: skip
    found = ask_daemon(context, lambda client: client.get(path))
    if as_json:
        print_json(found)
        return
    for line in found["lines"] or [f"nothing is recorded about {subject}"]:
        out.print(escape(clean(line)), soft_wrap=True)


def doctor(context: typer.Context, as_json: JsonFlag = False) -> None:
    """Check the journal's chain, the disk, the devices, the models and the configuration.

    Example: appliance doctor
    """
    found = ask_daemon(context, lambda client: client.get("/api/doctor"))
    if as_json:
        print_json(found)
    else:
        for check in found["checks"]:
            mark = "[green]ok  [/green]" if check["ok"] else "[red]bad [/red]"
            out.print(f"{mark} {escape(check['name'])}: {escape(clean(check['detail']))}",
                      soft_wrap=True)  # fmt: skip
            if check["hint"]:
                out.print(f"     [dim]→ {escape(check['hint'])}[/dim]", soft_wrap=True)
    raise typer.Exit(Exit.OK if found["ok"] else Exit.FAILED)


def budget(context: typer.Context, as_json: JsonFlag = False) -> None:
    """What was spent, and what is left under each cap.

    Example: appliance budget
    """
    found = ask_daemon(context, lambda client: client.get("/api/budget"))
    if as_json:
        print_json(found)
        return
    print_table(
        ("cap", "spent", "reserved", "limit"),
        [(row["scope"], row["spent"], row["reserved"], row["limit"])
         for row in found.get("caps", [])],
        "no caps are set, and nothing was spent",
    )  # fmt: skip


route_app = typer.Typer(no_args_is_help=True, help="Where steps run.")


@route_app.command("try")
def route_try(
    context: typer.Context,
    text: Annotated[str, typer.Argument(help="The prompt.")],
    agent: Annotated[str, typer.Option(help="Name of the agent.")] = "assistant",
    as_json: JsonFlag = False,
) -> None:
    """What would happen to a prompt, without doing it.

    Example: appliance route try "Prove it" --agent backend
    """
    body = {"agent": agent, "text": text}
    found = ask_daemon(context, lambda client: client.post("/api/route/try", body))
    if as_json:
        print_json(found)
        return
    for line in found["lines"]:
        out.print(escape(clean(line)), soft_wrap=True)


def _print_messages(messages: list[dict[str, Any]]) -> None:
    for message in messages:
        out.print(f"[bold]{message['role']}[/bold]")
        for block in message["blocks"]:
            out.print(escape(clean(_block_text(block))), soft_wrap=True)


def _block_text(block: dict[str, Any]) -> str:
    match block["type"]:
        case "text" | "thinking":
            return str(block["text"])
        case "tool_call":
            return f"→ {block['name']} {block['arguments']}"
        case "tool_result":
            return "← " + "".join(part.get("text", "[image]") for part in block["content"])
        case other:
            return f"[{other}]"


def _print_turn(turn: dict[str, Any]) -> None:
    out.print(f"[bold]{turn['id']}[/bold] {turn['agent']} · {turn['status']} · {turn['label']}")
    for step in turn["steps"]:
        calls = ", ".join(f"{call['tool']} ({call['status']})" for call in step["calls"])
        out.print(f"step {step['index'] + 1} on {step['target']}: {step['stop_reason']} {calls}")
    if turn["error"]:
        out.print(f"[red]{escape(clean(str(turn['error'].get('message', ''))))}[/red]")
    out.print(escape(clean(turn["text"])), soft_wrap=True)
