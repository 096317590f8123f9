"""The command line. Renders what the socket says; `serve` alone starts the daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from appliance import __version__
from appliance.cli import approve, ask, chat, config, look, mcp, models, plan, status
from appliance.cli.serving import run_daemon
from appliance.cli.shared import fail
from appliance.errors import ApplianceError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="One daemon that turns a GPU workstation into an AI team of one's own.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"appliance {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    home: Annotated[
        Path | None,
        typer.Option(
            help="Folder of config.toml, state/, models/ and run/; also APPLIANCE_HOME. "
            "Default: the system's places for root, else the user's."
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """See `appliance COMMAND --help` for an example of each command."""
    context.obj = home


@app.command()
def serve(context: typer.Context) -> None:
    """Run the daemon in the foreground.

    Example: appliance --home ~/appliance serve
    """
    try:
        run_daemon(context.obj)
    except ApplianceError as error:
        fail(error)


app.command()(ask.ask)
app.command()(chat.chat)
app.command()(status.status)
app.command()(status.top)
app.command()(plan.plan)
app.command()(look.sessions)
app.command()(look.turns)
app.command()(look.explain)
app.command()(look.doctor)
app.command()(look.budget)
app.add_typer(look.route_app, name="route")
app.add_typer(models.app, name="models")
app.add_typer(models.agents_app, name="agents")
app.add_typer(config.app, name="config")
app.add_typer(approve.app, name="approvals")
app.add_typer(mcp.app, name="mcp")
