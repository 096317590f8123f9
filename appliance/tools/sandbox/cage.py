"""Enters a sandbox: turns the calling process into the caged program. Never returns.

    python -I -S cage.py <JSON>     for the daemon, which starts MCP servers this way

The runner's child calls `become` directly. The JSON has `mode`, `bwrap`, `disable_userns`, `cage`,
`argv`, `environment`, and for the program form `limits` and `groups` (cgroup folders to enter).

Standard library only, as all that runs between a fork and the tool.
"""

import json
import os
import stat
import sys
from typing import Any, NoReturn

if __name__ == "__main__":  # run by path: make our package importable, and nothing else
    sys.path[0] = os.path.abspath(__file__).rsplit("/", 4)[0]

from appliance.tools.confine import Outside, Workspace
from appliance.tools.sandbox import bridge, landlock, limits
from appliance.tools.sandbox.plan import (
    NETWORK_FILES,
    SYSTEM_FOLDERS,
    Cage,
    Pin,
    bubblewrap_argv,
    pins,
)


def become(spec: dict[str, Any], cage: Cage) -> NoReturn:
    """Contain this process and execute the program. Raises OSError or Outside when it cannot."""
    argv, mode = spec["argv"], spec["mode"]
    if mode != "none":
        landlock.leave_keyring()
    with Workspace(cage.workspace) as workspace:
        if mode == "bubblewrap":
            opened = _open_pins(workspace, cage)
            way = bridge.attach(*cage.gate) if cage.gate else None
            argv = bubblewrap_argv(spec["bwrap"], cage, argv, opened, spec["disable_userns"], way)
            for fd, _ in opened.values():
                os.set_inheritable(fd, True)
        elif mode == "landlock":
            os.chdir(workspace.fd)
            landlock.restrict(_rules(workspace, cage), cage.network)
            landlock.forbid_system_calls(cage.network)
            landlock.drop_capabilities()
        else:
            os.chdir(workspace.fd)
        os.execvpe(argv[0], argv, spec["environment"])


def cage_from(fields: dict[str, Any]) -> Cage:
    """A `Cage` as its JSON has it: lists where tuples were."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return Cage(**values)


def _open_pins(workspace: Workspace, cage: Cage) -> dict[str, tuple[int, bool]]:
    """A descriptor for every mount source inside the workspace, made beneath it by the kernel.

    A read-only part that does not exist yet is created as a folder, so that nobody else can.
    """
    opened = {"": (os.dup(workspace.fd), True)}
    for pin in pins(cage.read_only, cage.hidden):
        fd = _open_pin(workspace, pin, create=pin.how != "hide")
        if fd is not None:
            opened[pin.path] = (fd, os.path.isdir(f"/proc/self/fd/{fd}"))
    return opened


def _open_pin(workspace: Workspace, pin: Pin, create: bool) -> int | None:
    try:
        return _open_no_link(workspace, pin.path)
    except FileNotFoundError:
        if not create:
            return None
    folder, name = workspace.open_parent(pin.path, create=True)
    try:
        os.mkdir(name, 0o755, dir_fd=folder)
    finally:
        os.close(folder)
    return _open_no_link(workspace, pin.path)


def _open_no_link(workspace: Workspace, path: str) -> int:
    fd = workspace.open(path, os.O_PATH | os.O_NOFOLLOW)
    if stat.S_ISLNK(os.fstat(fd).st_mode):
        os.close(fd)
        raise Outside(f"{path!r} is protected and has become a link")
    return fd


def _rules(workspace: Workspace, cage: Cage) -> list[landlock.Rule]:
    """Landlock can only allow. A folder that holds what must never be seen is not allowed at all; a
    workspace with protected parts is therefore allowed entry by
    entry, and then nothing new can be made beside a protected one: closed rather than open."""
    folders = (*SYSTEM_FOLDERS, *cage.extra_read, *(NETWORK_FILES if cage.network else ()))
    rules = [landlock.Rule(path, False) for path in folders if not _holds(path, cage.never)]
    rules += [landlock.Rule(path, True) for path in (*landlock.DEVICES, *cage.extra_write)]
    protected = {pin.path: pin.how for pin in pins(cage.read_only, cage.hidden)}
    return rules + _open_entries(workspace, "", protected)


def _open_entries(
    workspace: Workspace, folder: str, protected: dict[str, str]
) -> list[landlock.Rule]:
    if not any(path.startswith(folder) and path != folder for path in protected):
        return [landlock.Rule(workspace.open(folder or ".", os.O_PATH), True)]
    rules = []
    listed = workspace.open(folder or ".", os.O_RDONLY)
    for name in os.listdir(listed):
        path = f"{folder}{name}"
        match protected.get(path):
            case "hide":
                continue
            case "bind":
                rules += _open_entries(workspace, f"{path}/", protected)
            case how:
                fd = workspace.open(path, os.O_PATH | os.O_NOFOLLOW)
                if not stat.S_ISLNK(os.fstat(fd).st_mode):
                    rules.append(landlock.Rule(fd, how is None))
    os.close(listed)
    return rules


def _holds(folder: str, never: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for path in never)


def main(text: str) -> NoReturn:
    spec = json.loads(text)
    if spec["groups"]:
        limits.Group(tuple(spec["groups"])).enter()
    limits.set_rlimits(limits.Limits(*spec["limits"]), bool(spec["groups"]))
    landlock.die_with_parent(9)
    become(spec, cage_from(spec["cage"]))


if __name__ == "__main__":
    main(sys.argv[1])
