"""`appliance models` and `appliance agents`: what is configured, and what it is doing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from appliance.cli.shared import (
    JsonFlag,
    ask_daemon,
    clean,
    err,
    fail,
    gib,
    out,
    paths_of,
    print_json,
    print_table,
)
from appliance.config.manifest import load_manifest
from appliance.errors import ApplianceError, NotFound
from appliance.types import Progress

app = typer.Typer(help="Models: what is loaded, fetching, estimating.")
agents_app = typer.Typer(help="Agents, and the models they run on.")


@app.callback(invoke_without_command=True)
def models(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List models and their state.

    Example: appliance models
    """
    if context.invoked_subcommand is not None:
        return
    found = ask_daemon(context, lambda client: client.get("/api/models"))["models"]
    if as_json:
        print_json(found)
        return
    print_table(
        ("model", "engine", "place", "state", "window", "free slots", "memory", "tokens/s"),
        [(row["name"], row["engine"], row["place"], row["state"], row["context_window"],
          f"{row['slots_free']}/{row['slots']}", _memory(row["vram_bytes"]),
          f"{row['tokens_per_s']:.0f}" if row["tokens_per_s"] else "")
         for row in found],
        "no models are configured",
    )  # fmt: skip
    for row in found:
        if row["detail"]:
            out.print(f"[yellow]{escape(clean(row['name']))}: {escape(clean(row['detail']))}[/]")


@app.command()
def fetch(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name in models/manifest.toml.")],
    as_json: JsonFlag = False,
) -> None:
    """Bring a known model into the models folder, verified. Needs no daemon.

    Example: appliance models fetch smollm2-135m-instruct-q4_1
    """
    from rich.progress import Progress as Bar

    from appliance.engines.fetch import fetch as fetch_file

    manifest = load_manifest()
    entry = manifest.get(name)
    if entry is None:
        fail(NotFound(f"there is no model {name!r}", hint=f"known: {', '.join(manifest)}"))
    with Bar(console=err, transient=True, disable=as_json) as bar:
        task = bar.add_task(name, total=entry.bytes)

        def show(progress: Progress) -> None:
            bar.update(task, description=f"{progress.stage} {name}", total=progress.total,
                       completed=progress.done)  # fmt: skip

        try:
            path = fetch_file(name, entry, paths_of(context).models_dir, show)
        except ApplianceError as error:
            fail(error)
    print_json({"model": name, "path": str(path)}) if as_json else out.print(
        f"{name} is in {path}", soft_wrap=True
    )


@app.command()
def estimate(
    file: Annotated[Path, typer.Argument(help="A GGUF file, or a safetensors folder.")],
    context: Annotated[int, typer.Option(help="Cells of the cache, all slots together.")] = 4096,
    slots: Annotated[int, typer.Option(help="Sequences that share them.")] = 1,
    kv_type: Annotated[str, typer.Option(help="Element type of the KV cache.")] = "f16",
    as_json: JsonFlag = False,
) -> None:
    """Bytes a model would take, by term. Needs no daemon and no GPU.

    Example: appliance models estimate model.gguf --context 8192 --slots 4
    """
    from appliance.gpu.estimate_file import estimate_file

    try:
        terms = estimate_file(file, context, slots, kv_type)
    except ApplianceError as error:
        fail(error)
    if as_json:
        print_json(terms)
        return
    rows = [(name, f"{size / (1 << 20):.2f} MiB") for name, size in terms.items()
            if name.endswith("_bytes")]  # fmt: skip
    print_table(("term", "size"), rows, "nothing")


@agents_app.callback(invoke_without_command=True)
def agents(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List agents.

    Example: appliance agents
    """
    if context.invoked_subcommand is not None:
        return
    found = ask_daemon(context, lambda client: client.get("/api/agents"))["agents"]
    if as_json:
        print_json(found)
        return
    print_table(
        ("agent", "models", "policy", "label", "tools", "description"),
        [(row["name"], " > ".join(row["models"]), row["policy"], row["label"],
          len(row["tools"]) + len(row["mcp"]), row["description"])
         for row in found],
        "no agents are configured",
    )  # fmt: skip


@agents_app.command("set-model")
def set_model(
    context: typer.Context,
    agent: Annotated[str, typer.Argument(help="Name of the agent.")],
    model: Annotated[str, typer.Argument(help="Name of the model it runs on first.")],
    as_json: JsonFlag = False,
) -> None:
    """Put an agent on a model: edits config.toml, keeping its comments, and reloads.

    Example: appliance agents set-model backend qwen
    """
    body = {"model": model}
    done = ask_daemon(context, lambda client: client.put(f"/api/agents/{agent}/model", body))
    if as_json:
        print_json(done)
        return
    for change in done["changes"]:
        out.print(change["text"])


def _memory(size: int) -> str:
    return gib(size) if size else ""
