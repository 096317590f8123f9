"""What a contained process sees: pure decisions from a `Cage` to bubblewrap's arguments.

The root a tool gets is built up from nothing: system folders read-only, a private `/proc`, a
`/dev` with no GPU and no disk in it, empty size-bounded folders where programs expect to write,
and its workspace at the very path it has outside (so that paths in error messages mean the same
to the file tools). Namespaces hide all other processes, sockets and the network.

Parts of the workspace may be read-only or hidden for an agent. Three things make that hold against
a process that owns the folder: the mount sources are file descriptors the runner opened beneath
the workspace (a link swapped in afterwards changes nothing); every folder on the way to such a
part is made a mount point itself, and a mount point can be neither renamed nor removed; a
read-only part that does not exist is created first, because otherwise its absence could be filled.

`--die-with-parent` ties the process to the detached runner, not to the daemon: when the runner
dies, its tool dies, so a call in doubt is at least over.

Standard library only, no dataclasses: imported by the runner, which must start in milliseconds.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

SYSTEM_FOLDERS = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/localtime",
)
CERTIFICATES = ("/etc/ssl", "/etc/ca-certificates", "/etc/pki")
NETWORK_FILES = ("/etc/resolv.conf", "/etc/hosts", *CERTIFICATES)
TEMPORARY_BYTES = 256 << 20
"""Room in `/tmp` and `/dev/shm`, each; both are memory."""


class Cage(NamedTuple):
    """The folders one process may see. Paths absolute; the last two relative to the workspace."""

    workspace: str
    extra_read: tuple[str, ...] = ()
    extra_write: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    """Folders hidden even where an `extra_read` holds them: the daemon's state and config."""
    network: bool = False
    read_only: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    gate: tuple[str, ...] = ()
    """The daemon's gate and the key of this process there; empty: no way out. bubblewrap only."""


class Pin(NamedTuple):
    """A part of the workspace to be mounted on itself: `how` is bind, ro-bind, tmpfs or null."""

    path: str
    how: str


def pins(read_only: Sequence[str], hidden: Sequence[str]) -> tuple[Pin, ...]:
    """The mounts that enforce a file policy, outermost first."""
    chosen: dict[str, str] = {}
    for paths, how in ((read_only, "ro-bind"), (hidden, "hide")):
        for path in paths:
            parts = [part for part in path.split("/") if part not in ("", ".")]
            if not parts or ".." in parts:
                continue
            for depth in range(1, len(parts)):
                chosen.setdefault("/".join(parts[:depth]), "bind")
            chosen["/".join(parts)] = how
    for path in list(chosen):  # what lies inside a protected part must not be opened up again
        outer = path.rpartition("/")[0]
        while outer:
            if chosen.get(outer) == "hide" or (
                chosen.get(outer) == "ro-bind" and chosen[path] == "bind"
            ):
                del chosen[path]
                break
            outer = outer.rpartition("/")[0]
    return tuple(Pin(path, chosen[path]) for path in sorted(chosen))


def bubblewrap_argv(
    bwrap: str,
    cage: Cage,
    argv: Sequence[str],
    opened: Mapping[str, tuple[int, bool]],
    disable_userns: bool = True,
    bridge: tuple[int, int] | None = None,
) -> list[str]:
    """The command line that runs `argv` caged.

    `opened` maps each pinned path to the inherited descriptor of it and whether it is a folder;
    the empty path is the workspace itself. A pin without a descriptor is left out. `bridge` are
    the descriptors of `bridge.attach`.
    """
    args = [bwrap, "--unshare-all", "--new-session", "--die-with-parent", "--cap-drop", "ALL"]
    args += ["--unshare-user", "--disable-userns"] if disable_userns else []
    args += ["--share-net"] if cage.network else ["--hostname", "sandbox"]
    if bridge is not None:
        args += ["--info-fd", str(bridge[0]), "--block-fd", str(bridge[1])]
    system = SYSTEM_FOLDERS + (NETWORK_FILES if cage.network else ())
    system += CERTIFICATES if cage.gate else ()
    for path in system:
        args += ["--ro-bind-try", path, path]
    args += ["--proc", "/proc", "--dev", "/dev"]
    for path in ("/tmp", "/var/tmp", "/dev/shm"):
        args += ["--size", str(TEMPORARY_BYTES), "--tmpfs", path]
    for path in cage.extra_read:
        args += ["--ro-bind-try", path, path]
    for path in cage.extra_write:
        args += ["--bind-try", path, path]
    seen = (*system, *cage.extra_read, *cage.extra_write, "/tmp", "/var/tmp")
    for path in cage.never:
        if any(_is_within(path, folder) for folder in seen):
            args += ["--tmpfs", path]
    args += ["--bind", f"/proc/self/fd/{opened[''][0]}", cage.workspace]
    for pin in pins(cage.read_only, cage.hidden):
        if pin.path in opened:
            args += _pin_args(pin, f"{cage.workspace}/{pin.path}", *opened[pin.path])
    # Without the second of these a daemon of root gives its tools /proc/sys to write: they have no
    # capability, but the files there belong to root, and so do they (seen with bubblewrap 0.8).
    args += ["--remount-ro", "/", "--remount-ro", "/proc"]
    return [*args, "--chdir", cage.workspace, "--", *argv]


def _pin_args(pin: Pin, target: str, fd: int, is_folder: bool) -> list[str]:
    if pin.how != "hide":
        return [f"--{pin.how}", f"/proc/self/fd/{fd}", target]
    if is_folder:
        return ["--perms", "0000", "--size", "4096", "--tmpfs", target, "--remount-ro", target]
    return ["--ro-bind", "/dev/null", target]


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
