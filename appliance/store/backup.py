"""Copies of the database taken while it is written to, and their way back."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from sqlite_utils import Database as Inspected

from appliance.errors import Conflict, StoreError
from appliance.store.chain import ChainReport, check_file
from appliance.store.database import FILE_NAME, to_store_error
from appliance.store.migrations import migrate


def back_up(folder: Path, target: Path) -> ChainReport:
    """Copy a state folder's database to `target`, whole or not at all, and check the copy.

    Blocks (call it in a thread); the daemon may go on writing, the copy is of one moment.
    Raises `Conflict` when `target` exists, `StoreError` for a copy whose chain does not hold.
    """
    source = folder / FILE_NAME
    if not source.is_file():
        raise StoreError(f"{source}: there is no database", hint="name a daemon's state folder")
    return _copy(source, target)


def restore(backup: Path, folder: Path) -> ChainReport:
    """Put a backup into an empty state folder, after the same check. Never overwrites."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not backup.is_file():
        raise StoreError(f"{backup}: there is no such backup")
    return _copy(backup, folder / FILE_NAME)


def _copy(source: Path, target: Path) -> ChainReport:
    if target.exists():
        raise Conflict(f"{target} exists", hint="move it aside first; nothing is overwritten")
    partial = target.with_name(target.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as old:
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            with closing(sqlite3.connect(partial, isolation_level=None)) as new:
                old.backup(new)
                new.execute("PRAGMA journal_mode=DELETE")
                report = check_file(new)
        if not report.ok:
            raise StoreError(f"{source}: {report.why}", hint="restore an older backup")
        _require_tables(partial)
        _settle(partial, target)
    except sqlite3.Error as error:
        raise to_store_error(error, source) from error
    finally:
        partial.unlink(missing_ok=True)
    return report


def _require_tables(copy: Path) -> None:
    """Every table of this release's schema is there: a backup of something else is not one."""
    with closing(sqlite3.connect(copy)) as connection:
        found = set(Inspected(connection).table_names())
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection)
        wanted = set(Inspected(connection).table_names())
    if missing := wanted - found:
        raise StoreError(
            f"{copy}: the tables {', '.join(sorted(missing))} are missing",
            hint="this is no backup of this release's journal",
        )


def _settle(partial: Path, target: Path) -> None:
    """Rename durably: the file's bytes first, then the folder's entry."""
    for path in (partial, target.parent):
        if path == target.parent:
            partial.rename(target)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
