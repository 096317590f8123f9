"""`appliance approvals`, and the same questions answered live inside `ask` and `chat`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.markup import escape

from appliance.cli.client import Client, RemoteProblem
from appliance.cli.shared import JsonFlag, age, ask_daemon, clean, err, out, print_json, print_table
from appliance.errors import BadRequest

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
    for name, kind in fields_of(found.get("fields")).items():
        out.print(f"  --set {escape(clean(name))}=[dim]{escape(clean(kind))}[/dim]")


@app.command()
def allow(
    context: typer.Context,
    approval: str,
    always: Annotated[bool, typer.Option(help="And every call like it.")] = False,
    note: Annotated[str, typer.Option(help="Told to the agent.")] = "",
    values: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE a server's question asks for.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Let it run, or answer a server's question.

    Example: appliance approvals allow appr_…
    """
    decision = "allow_always" if always else "allow_once"
    _answer(context, approval, decision, note, as_json, values or [])


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


@app.command()
def standing(context: typer.Context, as_json: JsonFlag = False) -> None:
    """What was answered for good, with --always, and still holds.

    Example: appliance approvals standing
    """
    found = ask_daemon(context, lambda client: client.get("/api/grants"))["grants"]
    held = [grant for grant in found if grant["revoked_ms"] is None]
    if as_json:
        print_json(held)
        return
    now_ms = time.time_ns() // 1_000_000
    print_table(
        ("id", "agent", "tool", "answer", "given", "for"),
        [(row["id"], row["agent"], row["tool"], "always" if row["allow"] else "never",
          age(row["created_ms"], now_ms),
          " ".join(f"{name}={clean(value)}" for name, value in row["arguments"].items())
          or "any call")
         for row in held],
        "nothing was answered for good",
    )  # fmt: skip


@app.command()
def revoke(context: typer.Context, grant: str, as_json: JsonFlag = False) -> None:
    """Take a standing answer back: such calls are asked about again.

    Example: appliance approvals revoke grant_…
    """
    done = ask_daemon(context, lambda client: client.post(f"/api/grants/{grant}/revoke", {}))
    if as_json:
        print_json(done)
    else:
        out.print(f"{done['tool']}: asked about again")


def _answer(
    context: typer.Context,
    approval: str,
    decision: str,
    note: str,
    as_json: bool,
    values: Sequence[str] = (),
) -> None:
    async def work(client: Client) -> Any:
        body: dict[str, Any] = {"decision": decision, "note": note}
        if values:
            asked = await client.get(f"/api/approvals/{approval}")
            body["content"] = content_of(values, asked.get("fields"))
        return await client.post(f"/api/approvals/{approval}", body)

    done = ask_daemon(context, work)
    if as_json:
        print_json(done)
    else:
        out.print(f"{done['tool']}: {done['status']}")


def fields_of(schema: Mapping[str, Any] | None) -> dict[str, str]:
    """What a question asks for, by name, in words."""
    wanted: dict[str, str] = {}
    needed = (schema or {}).get("required", [])
    for name, field in dict((schema or {}).get("properties", {})).items():
        choices = field.get("enum")
        kind = "|".join(map(str, choices)) if choices else str(field.get("type", "text"))
        said = f"  {field['description']}" if field.get("description") else ""
        wanted[name] = kind + ("" if name in needed else " (may be left out)") + said
    return wanted


def content_of(values: Sequence[str], schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """NAME=VALUE pairs as the question's schema types them. Raises `BadRequest` without a name.
    What does not fit its type stays text; the daemon says what is wrong with it."""
    properties = dict((schema or {}).get("properties", {}))
    content: dict[str, Any] = {}
    for pair in values:
        name, equals, text = pair.partition("=")
        if not equals:
            raise BadRequest(f"{pair!r} is no NAME=VALUE", hint="appliance approvals show")
        kind = properties.get(name, {}).get("type", "string")
        content[name] = text if kind == "string" else _typed(text)
    return content


def _typed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


async def question_live(client: Client, asked: Mapping[str, Any], *, interactive: bool) -> None:
    """Put a server's question to the person at the terminal, if there is one."""
    approval, fields = asked["approval_id"], asked["fields"]
    if not interactive or not sys.stdin.isatty():
        err.print(f"[yellow]waits for: appliance approvals show {approval}[/yellow]")
        return
    err.print(f"\n[bold]{escape(clean(asked['server']))} asks:[/bold]")
    err.print(escape(clean(asked["message"])), soft_wrap=True)
    while True:
        line = await asyncio.to_thread(input, "Answer it? [y]es, [n]o: ")
        if line.strip().lower() == "n":
            await client.post(f"/api/approvals/{approval}", {"decision": "reject_once"})
            return
        if line.strip().lower() != "y":
            continue
        given = [
            f"{name}={value}"
            for name, kind in fields_of(fields).items()
            if (value := await asyncio.to_thread(input, f"{clean(name)} ({clean(kind)}): "))
        ]
        body = {"decision": "allow_once", "content": content_of(given, fields)}
        try:
            await client.post(f"/api/approvals/{approval}", body)
        except RemoteProblem as error:
            err.print(f"[red]{escape(clean(error.message))}[/red]")
            if error.code != BadRequest.code:  # answered elsewhere, or no longer waited for
                return
        else:
            return


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
