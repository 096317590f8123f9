"""`appliance plan`: what fits on these cards, or on cards one thinks of buying."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from appliance.cli.shared import JsonFlag, clean, fail, gib, out, paths_of, print_json, print_table
from appliance.config.load import load
from appliance.config.manifest import load_manifest
from appliance.errors import ApplianceError, BadRequest

if TYPE_CHECKING:
    from appliance.config.schema import Config
    from appliance.gpu.types import Inventory
    from appliance.gpu.wants import Placement


def plan(
    context: typer.Context,
    gpus: Annotated[
        str, typer.Option(help="Cards to plan for, such as 2x24GiB; default: this machine's.")
    ] = "",
    ram: Annotated[str, typer.Option(help="Host RAM, such as 64GiB; default: this one's.")] = "",
    models: Annotated[
        str, typer.Option(help="Names in config.toml, with commas; default: all.")
    ] = "",
    trace: Annotated[
        Path | None, typer.Option(help="CSV with time_s, agent, model, duration_s: what to expect.")
    ] = None,
    disk: Annotated[str, typer.Option(help="Bytes a second that a load reads.")] = "2GiB",
    as_json: JsonFlag = False,
) -> None:
    """Say what fits together, and what waiting to expect. Needs no daemon.

    Plans for an empty machine: only the reserves of config.toml are kept free.

    Example: appliance plan --gpus 2x24GiB --trace requests.csv
    """
    try:
        found = _plan(context, gpus, ram, models, trace, disk)
    except ApplianceError as error:
        fail(error)
    if as_json:
        print_json(found)
    else:
        _print(found)


def _plan(
    context: typer.Context, gpus: str, ram: str, models: str, trace: Path | None, disk: str
) -> dict[str, Any]:
    from appliance.gpu.wants import PlacementPolicy
    from appliance.scheduler.plan import fit_together, outlook, size_named
    from appliance.scheduler.replay import read_trace
    from appliance.scheduler.wanted import model_specs, unreadable_models

    paths, manifest = paths_of(context), load_manifest()
    config = _chosen(load(paths.config_file), models)
    missing = unreadable_models(config, paths.models_dir, manifest)
    readable = {name: model for name, model in config.models.items() if name not in missing}
    specs = model_specs(config.model_copy(update={"models": readable}), paths.models_dir, manifest)
    inventory = _inventory(gpus, ram, config.gpu.devices)
    policy = PlacementPolicy(
        reserve_bytes=config.gpu.reserve_bytes, host_reserve_bytes=config.gpu.host_reserve_bytes
    )
    fits = fit_together(specs, inventory, policy)
    promised = fits.promised
    found: dict[str, Any] = {
        "devices": [
            {
                "device": device.uuid,
                "name": device.name,
                "total_bytes": device.total_bytes,
                "reserve_bytes": policy.reserve_of(device),
                "promised_bytes": promised.get(device.uuid, 0),
            }
            for device in inventory.devices
        ],
        "models": [_placed(placement) for placement in fits.resident],
        "in_turn": [_placed(placement) for placement in fits.in_turn],
        "refused": [
            {
                "model": refusal.model,
                "reason": refusal.reason,
                "needed_bytes": refusal.needed_bytes,
                "would_fit_with": [choice.text for choice in refusal.choices],
            }
            for refusal in fits.refused
        ],
        "missing": missing,
    }
    if trace is not None:
        if not trace.is_file():
            raise BadRequest(f"{trace} is not there")
        rows = read_trace(trace)
        expected = outlook(rows, specs, inventory, policy, float(size_named(disk)))
        found["trace"] = {
            **asdict(expected.all),
            "by_model": {model: asdict(of) for model, of in expected.by_model.items()},
            "refused": dict(expected.refused),
        }
    return found


def _placed(placement: Placement) -> dict[str, Any]:
    return {
        "model": placement.model,
        "bytes_by_device": placement.by_device,
        "gpu_layers": placement.gpu_layers,
        "context_window": placement.context_window,
        "slots": placement.slots,
        "kv_type": placement.kv_type.value,
        "notes": list(placement.reasons),
    }


def _chosen(config: Config, models: str) -> Config:
    """The configuration with these models alone."""
    names = [name.strip() for name in models.split(",") if name.strip()]
    unknown = [name for name in names if name not in config.models]
    if unknown:
        raise BadRequest(
            f"config.toml has no model {', '.join(unknown)}",
            hint=f"it has: {', '.join(config.models)}",
        )
    kept = {name: model for name, model in config.models.items() if not names or name in names}
    return config.model_copy(update={"models": kept})


def _inventory(gpus: str, ram: str, wanted: tuple[str, ...]) -> Inventory:
    """The cards named, or those of this machine that the configuration uses; host RAM last."""
    from appliance.gpu.host import host_device
    from appliance.gpu.types import Inventory
    from appliance.scheduler.plan import cards_named, size_named

    if gpus:
        inventory = Inventory((*cards_named(gpus), host_device()), taken_s=0.0)
    else:
        inventory = asyncio.run(_this_machine())
        cards = (card for card in inventory.gpus
                 if not wanted or card.uuid in wanted or str(card.index) in wanted)  # fmt: skip
        inventory = replace(inventory, devices=(*cards, inventory.host))
    if ram:
        host = replace(inventory.host, total_bytes=size_named(ram))
        inventory = replace(inventory, devices=(*inventory.gpus, host))
    return inventory


async def _this_machine() -> Inventory:
    from appliance.gpu.inventory import Prober

    async with Prober() as prober:
        return prober.latest


def _print(found: dict[str, Any]) -> None:
    print_table(
        ("device", "name", "total", "reserve", "promised"),
        [(row["device"], row["name"], gib(row["total_bytes"]), gib(row["reserve_bytes"]),
          gib(row["promised_bytes"])) for row in found["devices"]],
        "no devices",
    )  # fmt: skip
    out.print()
    _print_models(found["models"], "no model is placed")
    if found["in_turn"]:
        out.print()
        _say("Take turns with these, each loaded when it is asked for and others are idle:", "bold")
        _print_models(found["in_turn"], "")
    for row in found["refused"]:
        _say(f"does not fit: {row['reason']}", "red")
        for choice in row["would_fit_with"]:
            _say(f"  would fit with {choice}", "dim")
    for name, why in found["missing"].items():
        _say(f"{name} is left out: {why}", "yellow")
    if "trace" in found:
        _print_trace(found["trace"])


def _print_models(rows: list[dict[str, Any]], empty: str) -> None:
    print_table(
        ("model", "on", "window", "slots", "KV"),
        [(row["model"],
          ", ".join(f"{uuid} {gib(size)}" for uuid, size in row["bytes_by_device"].items()),
          row["context_window"], row["slots"], row["kv_type"]) for row in rows],
        empty,
    )  # fmt: skip
    for row in rows:
        if row["notes"]:
            _say(f"{row['model']}: {'; '.join(row['notes'])}", "dim")


def _print_trace(trace: dict[str, Any]) -> None:
    out.print()
    waits = ", ".join(f"{name} {trace[f'wait_{name}_s']:.1f} s" for name in ("p50", "p95", "p99"))
    _say(f"{trace['requests']} requests wait {waits}, at most {trace['wait_max_s']:.1f} s", "bold")
    _say(f"{trace['loads']} loads, {trace['swaps']} models evicted for others", "")
    out.print()
    rows = [
        (
            model,
            of["requests"],
            *(f"{of[f'wait_{name}_s']:.1f} s" for name in ("p50", "p95", "max")),
            of["loads"],
            of["swaps"],
        )
        for model, of in trace["by_model"].items()
    ]
    columns = ("model", "requests", "wait p50", "p95", "at most", "loads", "evicted")
    print_table(columns, rows, "")
    for reason, count in trace["refused"].items():
        _say(f"{count} refused: {reason}", "red")


def _say(text: str, style: str) -> None:
    out.print(escape(clean(text)), style=style or None)
