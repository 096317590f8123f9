"""What one call may use: a cgroup of its own where we may make one, rlimits everywhere.

The two cover different things. An rlimit holds for each process, so it bounds a file's size, CPU
seconds and core dumps well, and memory and process counts only roughly (for root the count is not
enforced at all). A cgroup bounds the whole call, but needs a sub-tree we may write: delegated by
systemd (`Delegate=yes`), or ours because we are root. `watch` closes the gap without either: the
runner looks ten times a second and ends a call that is over.

Standard library only: the runner uses it.
"""

import os
import resource
from collections.abc import Callable
from typing import NamedTuple

OPEN_FILES_MAX = 1024
DELEGATED_SUBGROUP = "daemon"
UNLIMITED = -1
"""CPU seconds of what runs for as long as the daemon does."""


class Limits(NamedTuple):
    """Bounds of one call, its children included where a cgroup holds them."""

    memory_bytes: int
    processes: int
    file_bytes: int
    cpu_s: int


class Group(NamedTuple):
    """The cgroup folders of one call: one on the unified hierarchy, one per controller before."""

    folders: tuple[str, ...]

    def enter(self) -> None:
        """Put the calling process in; called in the child before it becomes the tool."""
        for folder in self.folders:
            _write(f"{folder}/cgroup.procs", "0")

    def pids(self) -> set[int]:
        found: set[int] = set()
        for folder in self.folders:
            found.update(int(line) for line in _read(f"{folder}/cgroup.procs").split())
        return found

    def out_of_memory_kills(self) -> int:
        """How often the kernel ended a process here for memory."""
        total = 0
        for folder in self.folders:
            for name in ("memory.events", "memory.oom_control"):
                for line in _read(f"{folder}/{name}").splitlines():
                    key, _, value = line.partition(" ")
                    total += int(value) if key == "oom_kill" else 0
        return total

    def remove(self) -> None:
        """Removes the folders if they are empty; a leftover is empty and harmless."""
        for folder in self.folders:
            _quietly(lambda folder=folder: os.rmdir(folder))  # type: ignore[misc]


def make_group(name: str, limits: Limits) -> Group | None:
    """A cgroup bounded by `limits`, or None where we may make none."""
    folders: list[str] = []
    unified, controllers = homes()
    try:
        if unified:
            folder = os.path.join(unified, name)
            os.mkdir(folder)
            folders.append(folder)
            _write(f"{folder}/memory.max", str(limits.memory_bytes))
            _quietly(lambda: _write(f"{folder}/memory.swap.max", "0"))
            _write(f"{folder}/pids.max", str(limits.processes))
        for controller, home in controllers.items():
            folder = os.path.join(home, name)
            os.mkdir(folder)
            folders.append(folder)
            if controller == "memory":
                _write(f"{folder}/memory.limit_in_bytes", str(limits.memory_bytes))
            else:
                _write(f"{folder}/pids.max", str(limits.processes))
    except OSError:
        Group(tuple(folders)).remove()
        return None
    return Group(tuple(folders)) if folders else None


def homes(root: str = "/sys/fs/cgroup") -> tuple[str, dict[str, str]]:
    """Where this process may make cgroups: a unified folder, or one per old-style controller.

    A unified folder counts only if it hands `memory` and `pids` down to its children. With
    `Delegate=yes` and `DelegateSubgroup=daemon` in the unit, the folder above ours is ours to set
    so; a folder with processes in it cannot be (the kernel's rule of no inner processes).
    """
    lines = [line.split(":", 2) for line in _read("/proc/self/cgroup").splitlines()]
    own = {names: path.lstrip("/") for _, names, path in lines}
    mine = own.get("", "")
    above = os.path.join(root, os.path.dirname(mine))
    if os.path.basename(mine) == DELEGATED_SUBGROUP:
        _quietly(lambda: _write(f"{above}/cgroup.subtree_control", "+memory +pids"))
    for folder in (os.path.join(root, mine), above):
        handed = _read(f"{folder}/cgroup.subtree_control").split()
        if {"memory", "pids"} <= set(handed) and os.access(folder, os.W_OK):
            return folder, {}
    controllers: dict[str, str] = {}
    for name in ("memory", "pids"):
        folder = os.path.join(root, name, own.get(name, ""))
        if name in own and os.access(folder, os.W_OK) and os.path.exists(f"{folder}/tasks"):
            controllers[name] = folder
    return "", controllers


def set_rlimits(limits: Limits, is_grouped: bool) -> None:
    """Bounds of the calling process and what it starts. Memory and process count only where no
    cgroup holds them: per process they would bound a build of many small programs wrongly."""
    bounds = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_NOFILE, OPEN_FILES_MAX),
    ]
    if not is_grouped:
        bounds.append((resource.RLIMIT_DATA, limits.memory_bytes))
    for kind, value in bounds:
        if value == UNLIMITED:
            continue
        hard = resource.getrlimit(kind)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bound, bound))


def descendants(root: int) -> set[int]:
    """Every process below `root`, whatever session it is in.

    By the kernel's own lists of children where it keeps them (CONFIG_PROC_CHILDREN), else by the
    parent links of every process there is, which takes ten times as long.
    """
    children_of: Callable[[int], list[int] | None] = _listed_children
    if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
        children_of = _all_children().get
    found: set[int] = set()
    pending = [root]
    while pending:
        for child in children_of(pending.pop()) or ():
            if child not in found:
                found.add(child)
                pending.append(child)
    return found


def _listed_children(pid: int) -> list[int] | None:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return None
    return [int(c) for t in threads for c in _read(f"/proc/{pid}/task/{t}/children").split()]


def _all_children() -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = _read(f"/proc/{name}/stat").rpartition(")")[2].split()
            if len(fields) > 1:
                children.setdefault(int(fields[1]), []).append(int(name))
    return children


def excess(pids: set[int], limits: Limits) -> str:
    """Which bound these processes are over together, or the empty text."""
    if len(pids) > limits.processes:
        return "processes"
    page = os.sysconf("SC_PAGE_SIZE")
    resident = 0
    for pid in pids:
        fields = _read(f"/proc/{pid}/statm").split()
        if len(fields) > 2:
            resident += (int(fields[1]) - int(fields[2])) * page
    return "memory" if resident > limits.memory_bytes else ""


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return ""


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _quietly(action: Callable[[], object]) -> None:
    try:
        action()
    except OSError:
        return
