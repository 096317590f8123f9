"""`appliance config`: check a file, show what is in force, what would change, read it again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from appliance.cli.client import Client
from appliance.cli.shared import (
    Exit,
    JsonFlag,
    ask_daemon,
    fail,
    out,
    paths_of,
    print_json,
)
from appliance.config.load import load
from appliance.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="The configuration.")


@app.command()
def check(
    context: typer.Context,
    file: Annotated[Path | None, typer.Argument(help="Default: the daemon's config.toml.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say whether a file is valid; name file, line and key where not. Needs no daemon.

    Example: appliance config check
    """
    path = file or paths_of(context).config_file
    try:
        config = load(path)
    except ConfigError as error:
        if as_json:
            print_json({"ok": False, **error.to_json()})
            raise typer.Exit(Exit.USAGE) from None
        fail(error)
    if as_json:
        print_json({"ok": True, "file": str(path), "revision": config.revision})
    else:
        out.print(f"{path}: valid, revision {config.revision}", soft_wrap=True)


@app.command()
def show(context: typer.Context, as_json: JsonFlag = False) -> None:
    """The configuration in force.

    Example: appliance config show
    """
    found = ask_daemon(context, lambda client: client.get("/api/config"))
    if as_json:
        print_json(found)
        return
    import tomlkit
    from rich.syntax import Syntax

    out.print(f"# {found['file']}, revision {found['revision']}", soft_wrap=True)
    if found["error"]:
        out.print(f"[red]# not in force: {escape(found['error'])}[/red]", soft_wrap=True)
    out.print(Syntax(tomlkit.dumps(_without_none(found["config"])), "toml"))


@app.command()
def diff(context: typer.Context, as_json: JsonFlag = False) -> None:
    """What a reload of the saved file would change.

    Example: appliance config diff
    """
    _print(ask_daemon(context, lambda client: client.get("/api/config/diff")), as_json)


@app.command()
def reload(context: typer.Context, as_json: JsonFlag = False) -> None:
    """Read config.toml again; a mistake in it changes nothing.

    Example: appliance config reload
    """

    async def work(client: Client) -> Any:
        return await client.post("/api/config/reload")

    _print(ask_daemon(context, work), as_json)


def _print(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    for change in found["changes"]:
        out.print(escape(change["text"]), soft_wrap=True)
    if not found["changes"]:
        out.print("[dim]nothing differs[/dim]")


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    return value
