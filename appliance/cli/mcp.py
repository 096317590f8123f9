"""`appliance mcp`: the MCP servers that agents use, and tools that changed under them."""

from __future__ import annotations

import typer
from rich.markup import escape

from appliance.cli.shared import JsonFlag, ask_daemon, clean, out, print_json, print_table

app = typer.Typer(no_args_is_help=True, help="MCP servers: their state and their tools.")


@app.command("list")
def list_servers(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List the configured servers. They start when an agent needs them.

    Example: appliance mcp list
    """
    found = ask_daemon(context, lambda client: client.get("/api/mcp"))["servers"]
    if as_json:
        print_json(found)
        return
    print_table(
        ("server", "state", "used by", "tools"),
        [(row["name"], row["state"], ", ".join(row["agents"]), ", ".join(row["tools"]))
         for row in found],
        "no MCP servers are configured: [mcp.NAME] in config.toml",
    )  # fmt: skip
    for row in found:
        for line in (row["problem"], *row["left_out"]):
            if line:
                out.print(f"[yellow]{escape(row['name'])}: {escape(clean(line))}[/]",
                          soft_wrap=True)  # fmt: skip


@app.command()
def accept(context: typer.Context, name: str, as_json: JsonFlag = False) -> None:
    """Accept the tools that a server offers since it changed them; look at the server first.

    Example: appliance mcp accept git
    """
    done = ask_daemon(context, lambda client: client.post(f"/api/mcp/{name}/accept"))
    if as_json:
        print_json(done)
    else:
        out.print(f"accepted: {escape(clean(', '.join(done['tools'])))}", soft_wrap=True)
