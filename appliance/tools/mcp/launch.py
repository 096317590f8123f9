"""What a server's program may see: pure but for looking at where programs lie.

A server comes with its own interpreter and packages, often below somebody's home. The folders it
needs follow from its command line: the program, the interpreter its first line names, what both
link to, and files among its arguments. They are read-only; what it may write is in the config.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from appliance.tools.sandbox.plan import SYSTEM_FOLDERS


def resolve(command: Sequence[str]) -> list[str]:
    """The command with its program as an absolute path. Raises FileNotFoundError."""
    found = shutil.which(command[0])
    if found is None:
        raise FileNotFoundError(f"there is no program {command[0]!r}")
    return [os.path.abspath(found), *command[1:]]


def folders_needed(command: Sequence[str]) -> tuple[str, ...]:
    """Folders outside the system's that the program and its interpreter lie in."""
    needed: list[str] = []
    for path in _programs(command[0]):
        needed.append(_package_root(path) if "/node_modules/" in path else _prefix(path))
    for argument in command[1:]:
        if os.path.isabs(argument) and os.path.isfile(argument):
            needed.append(_package_root(os.path.realpath(argument)))
    home = os.path.expanduser("~")
    kept = [
        folder
        for folder in dict.fromkeys(needed)
        if folder not in ("/", home) and not _is_system(folder)
    ]
    return tuple(kept)


def _programs(path: str) -> list[str]:
    """The program, each link on its way, and the same of the interpreter in its first line."""
    found: list[str] = []
    pending = [path]
    while pending and len(found) < 16:
        path = pending.pop()
        if path in found or not os.path.exists(path):
            continue
        found.append(path)
        if os.path.islink(path):
            target = os.path.join(os.path.dirname(path), os.readlink(path))
            pending.append(os.path.normpath(target))
        else:
            pending += _interpreter(path)
    return found


def _interpreter(path: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            line = file.readline(512)
    except OSError:
        return []
    if not line.startswith(b"#!"):
        return []
    words = line[2:].decode("utf-8", "replace").split()
    found = [] if len(words) < 2 else [shutil.which(words[1])]
    return words[:1] + [program for program in found if program]


def _prefix(path: str) -> str:
    """`/x/bin/program` → `/x`: an environment is more than its programs."""
    folder = os.path.dirname(os.path.normpath(path))
    return os.path.dirname(folder) if os.path.basename(folder) == "bin" else folder


def _package_root(path: str) -> str:
    head, marker, _ = path.partition("/node_modules/")
    return head + "/node_modules" if marker else os.path.dirname(path)


def _is_system(folder: str) -> bool:
    real = os.path.realpath(folder)
    return any(real == system or real.startswith(system + "/") for system in SYSTEM_FOLDERS)
