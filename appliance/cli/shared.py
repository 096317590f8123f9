"""What every command shares: where the daemon is, how errors end, how values are printed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from appliance.cli.client import Client
from appliance.config.load import load
from appliance.config.paths import Paths, client_socket, find_paths
from appliance.errors import (
    ApplianceError,
    BudgetExceeded,
    ConfigError,
    DaemonUnreachable,
    EgressDenied,
    Overloaded,
    Refused,
)

T = TypeVar("T")

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4


_REFUSALS = frozenset(kind.code for kind in (Refused, EgressDenied, BudgetExceeded, Overloaded)) | {
    "no_capacity",
    "unauthenticated",
    "limit_reached",
}


def exit_code(error: ApplianceError) -> Exit:
    return exit_code_of(error.code)


def exit_code_of(code: str) -> Exit:
    """The exit code for an error's stable code."""
    if code == DaemonUnreachable.code:
        return Exit.UNREACHABLE
    if code in _REFUSALS:
        return Exit.REFUSED
    if code in (ConfigError.code, "bad_request", "not_found", "conflict"):
        return Exit.USAGE
    return Exit.FAILED


def paths_of(context: typer.Context, *, with_config: bool = True) -> Paths:
    """The places of the daemon this command speaks of; a broken config leaves the defaults."""
    home: Path | None = context.obj
    paths = find_paths(home, os.environ)
    if with_config:
        with suppress(ConfigError):
            paths = paths.with_config(load(paths.config_file).daemon)
    return paths


def ask_daemon(context: typer.Context, work: Callable[[Client], Awaitable[T]]) -> T:
    """Run `work` with a client; errors end the program with their exit code."""

    async def connected() -> T:
        async with Client(client_socket(paths_of(context))) as client:
            return await work(client)

    return run_or_exit(connected)


def run_or_exit(work: Callable[[], Awaitable[T]]) -> T:
    try:
        return asyncio.run(_as_coroutine(work))
    except ApplianceError as error:
        fail(error)


async def _as_coroutine(work: Callable[[], Awaitable[T]]) -> T:
    return await work()


def fail(error: ApplianceError) -> NoReturn:
    """Say what went wrong and what to do next, and end with the right code."""
    raise typer.Exit(say(error))


def say(error: ApplianceError) -> Exit:
    """Say what went wrong and what to do next; the exit code for it."""
    err.print(f"[red]{escape(clean(error.message))}[/red]", soft_wrap=True)
    if error.hint:
        err.print(f"[dim]→ {escape(clean(error.hint))}[/dim]", soft_wrap=True)
    return exit_code(error)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], empty: str) -> None:
    """A plain table that fits 80 columns; `empty` is said when there is no row."""
    if not rows:
        out.print(f"[dim]{escape(empty)}[/dim]")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(clean(str(value))) for value in row))
    out.print(table)


def clean(text: str) -> str:
    """Text without control characters: what a model says must not steer a terminal."""
    return _CONTROL.sub("�", text)


def age(at_ms: int, now_ms: int) -> str:
    """How long ago, in the largest unit that is at least one."""
    seconds = max((now_ms - at_ms) // 1000, 0)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
