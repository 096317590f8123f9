"""`appliance status` and `appliance top`: the machine, its models, its queue, in 80 columns."""

from __future__ import annotations

import asyncio
from itertools import cycle
from string import ascii_lowercase
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
    letters = _letters(found["models"])
    parts: list[RenderableType] = [_headline(found)]
    parts += [Text(f"  {clean(reason)}", "yellow") for reason in found["reasons"]]
    parts.append(_devices(found, letters))
    parts.append(_models(found, letters))
    parts += [
        Text(f"  {model['name']}: {clean(model['detail'])}", "dim")
        for model in found["models"]
        if model["detail"]
    ]
    return Group(*parts)


def _letters(models: list[dict[str, Any]]) -> dict[str, str]:
    """A letter for each model that holds memory: the bars are made of them."""
    resident = [model["name"] for model in models if model["vram_bytes"]]
    return dict(zip(resident, cycle(ascii_lowercase), strict=False))


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


def _devices(found: dict[str, Any], letters: dict[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("device", "memory", "used / total", ""):
        table.add_column(column, no_wrap=column == "memory", overflow="fold")
    for device in found["devices"]:
        ours = {
            letters[model["name"]]: model["bytes_by_device"][device["id"]]
            for model in found["models"]
            if model["name"] in letters and device["id"] in model["bytes_by_device"]
        }
        promised = device["reserved_bytes"]
        foreign = max(device["used_bytes"] - promised, 0)
        notes = [device["health"]] if device["health"] != "ok" else []
        if device["temperature_c"] is not None:
            notes.append(f"{device['temperature_c']} °C")
        if device["power_w"] is not None:
            notes.append(f"{device['power_w']:.0f} W")
        table.add_row(
            escape(device["name"]),
            _bar(ours, foreign, device["capacity_bytes"], device["total_bytes"]),
            f"{_gib(promised + foreign)} / {_gib(device['total_bytes'])} GiB",
            " ".join(notes),
        )
    return table


def _bar(ours: dict[str, int], foreign: int, capacity: int, total: int) -> Text:
    """Each model's bytes in its letter, other programs' hatched, the operator's reserve dashed at
    the end, the rest dotted. Whoever holds anything gets a cell."""
    if total <= 0:
        return Text("no memory", "dim")

    def cells(amount: int) -> int:
        return min(max(round(BAR_CELLS * amount / total), int(amount > 0)), BAR_CELLS - len(bar))

    bar = Text()
    for letter, held in ours.items():
        bar.append(letter * cells(held), "green")
    bar.append("▒" * cells(foreign), "yellow")
    reserve = cells(total - capacity) if capacity else 0
    bar.append("·" * (BAR_CELLS - len(bar) - reserve), "dim")
    bar.append("-" * reserve, "dim")
    return bar


def _models(found: dict[str, Any], letters: dict[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "model", "state", "slots", "waiting", "wait", "tokens/s", "memory"):
        table.add_column(column, overflow="fold")
    for model in found["models"]:
        busy = model["slots"] - model["slots_free"]
        rate = model["tokens_per_s"]
        table.add_row(
            Text(letters.get(model["name"], ""), "green"),
            escape(model["name"]),
            _state(model),
            f"{busy}/{model['slots']}" if model["slots"] else "",
            str(model["waiting"]),
            f"{model['predicted_wait_s']:.1f} s",
            f"{rate:.0f}" if rate else "",
            f"{_gib(model['vram_bytes'])} GiB" if model["vram_bytes"] else "",
        )
    return table


def _state(model: dict[str, Any]) -> str:
    is_loading = model["state"] == "starting" and model["load_progress"]
    return f"starting {model['load_progress']:.0%}" if is_loading else str(model["state"])


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f}"
