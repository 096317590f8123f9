"""`appliance status` and `appliance top`: the machine, its models, its queue, in 80 columns."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from appliance.cli.client import Client
from appliance.cli.shared import Exit, JsonFlag, ask_daemon, clean, out, print_json

BAR_CELLS = 28
REFRESH_S = 1.0


def status(context: typer.Context, as_json: JsonFlag = False) -> None:
    """What the daemon is doing: devices, models, queue, turns.

    Example: appliance status
    """
    found = ask_daemon(context, lambda client: client.get("/api/status"))
    print_json(found) if as_json else out.print(render(found))


def top(
    context: typer.Context,
    every_s: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = REFRESH_S,
    as_json: JsonFlag = False,
) -> None:
    """The same, live; Ctrl-C ends it. With --json one object a look.

    Example: appliance top
    """

    async def work(client: Client) -> int:
        found = await client.get("/api/status")
        if as_json:
            while True:
                print_json(found)
                await asyncio.sleep(every_s)
                found = await client.get("/api/status")
        with Live(render(found), console=out, screen=out.is_terminal) as live:
            while True:
                await asyncio.sleep(every_s)
                live.update(render(await client.get("/api/status")))

    try:
        ask_daemon(context, work)
    except KeyboardInterrupt:
        raise typer.Exit(Exit.OK) from None


def render(found: dict[str, Any]) -> RenderableType:
    """The status as text and tables that fit 80 columns."""
    parts: list[RenderableType] = [_headline(found)]
    parts += [Text(f"  {clean(reason)}", "yellow") for reason in found["reasons"]]
    parts.append(_devices(found))
    parts.append(_models(found))
    return Group(*parts)


def _headline(found: dict[str, Any]) -> Text:
    minutes = found["uptime_s"] / 60
    colour = {"ready": "green", "degraded": "yellow"}.get(found["state"], "red")
    return Text.from_markup(
        f"[bold]appliance {found['version']}[/bold] [{colour}]{found['state']}[/{colour}] "
        f"up {minutes:.0f} min · {found['rss_bytes'] / (1 << 20):.0f} MiB · "
        f"config {found['config_revision']}\n"
        f"turns {found['turns_unfinished']} · running {found['leases']} · "
        f"waiting {found['steps_waiting']} · approvals {found['approvals_pending']} · "
        f"today ${found['spend_today_micro_usd'] / 1_000_000:.2f}"
        + (" · air gap" if found["air_gap"] else "")
    )


def _devices(found: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("device", "memory", "used / total", ""):
        table.add_column(column, no_wrap=column == "memory", overflow="fold")
    for device in found["devices"]:
        total, ours = device["total_bytes"], device["reserved_bytes"]
        other = max(device["used_bytes"] - ours, 0) if device["used_bytes"] > ours else 0
        notes = [device["health"]] if device["health"] != "ok" else []
        if device["temperature_c"] is not None:
            notes.append(f"{device['temperature_c']} °C")
        if device["power_w"] is not None:
            notes.append(f"{device['power_w']:.0f} W")
        table.add_row(
            escape(device["name"]),
            _bar(ours, other, total),
            f"{_gib(ours + other)} / {_gib(total)} GiB",
            " ".join(notes),
        )
    return table


def _bar(ours: int, other: int, total: int) -> Text:
    """Ours solid, foreign hatched, the rest empty."""
    if total <= 0:
        return Text("no memory", "dim")
    mine = min(round(BAR_CELLS * ours / total), BAR_CELLS)
    theirs = min(round(BAR_CELLS * other / total), BAR_CELLS - mine)
    bar = Text("█" * mine, "green")
    bar.append("▒" * theirs, "yellow")
    bar.append("·" * (BAR_CELLS - mine - theirs), "dim")
    return bar


def _models(found: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", "state", "slots", "waiting", "wait", "tokens/s", "memory"):
        table.add_column(column, overflow="fold")
    for model in found["models"]:
        busy = model["slots"] - model["slots_free"]
        rate = model["tokens_per_s"]
        table.add_row(
            escape(model["name"]),
            model["state"],
            f"{busy}/{model['slots']}",
            str(model["waiting"]),
            f"{model['predicted_wait_s']:.1f} s",
            f"{rate:.0f}" if rate else "",
            f"{_gib(model['vram_bytes'])} GiB" if model["vram_bytes"] else "",
        )
    return table


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f}"
