"""Opens paths inside a workspace so that nothing outside of it can be reached by name.

The problem is not `..` alone. A model (or a program it ran) owns the workspace: it can put a
symbolic link where a file was, between our check and our use, or point one at `/proc/self/root`.
Checking a name and then using it is therefore a race by construction, whatever the check. What is
needed is one step that resolves and opens, in the kernel:

* `openat2(2)` with `RESOLVE_BENEATH` (Linux 5.6) refuses every component that leaves the starting
  folder, absolute links and magic links of `/proc` included, and fails rather than races. Links
  that stay inside go on working, which people expect of a repository.
* Where the kernel (or a seccomp filter, as older containers have) knows no `openat2`, we walk the
  components ourselves with `O_NOFOLLOW`, each opened relative to the folder before. Links are then
  refused altogether: following them safely from user space is the race again.

A hard link to a file outside cannot be told from the file itself by any of this. Reading one is
what its creator could do anyway; for writing we replace the file (write beside, rename), which cuts
the link instead of writing through it.

Standard library only: the detached runner imports this and must start fast.
"""

import ctypes
import errno
import os
import stat
from collections.abc import Sequence

_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08
_COMPONENTS_MAX = 64
"""Deeper paths are no honest request; each component is a system call in the fallback."""


class Outside(Exception):
    """The path leaves the workspace, or names what policy hides or protects."""


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


_libc = ctypes.CDLL(None, use_errno=True)


class Workspace:
    """One folder, held open. Paths are relative to it; an absolute one must lie inside it.

    Raises `Outside` for what may not be reached and `OSError` for ordinary failures. Close it.
    """

    def __init__(
        self,
        root: str,
        read_only: Sequence[str] = (),
        hidden: Sequence[str] = (),
        use_openat2: bool = True,
    ) -> None:
        self.root = os.path.realpath(root)
        self._read_only = tuple(_parts(path) for path in read_only)
        self._hidden = tuple(_parts(path) for path in hidden)
        self._use_openat2 = use_openat2
        self.fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> "Workspace":
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)

    def relative(self, path: str) -> str:
        """The path from the root, normalised by text alone; `.` for the root itself."""
        if "\0" in path:
            raise Outside("a path cannot hold a NUL byte")
        if os.path.isabs(path):
            if path != self.root and not path.startswith(self.root.rstrip("/") + "/"):
                raise Outside(f"{path!r} is outside the workspace")
            path = path[len(self.root) :].lstrip("/")
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if len(parts) > _COMPONENTS_MAX:
            raise Outside(f"a path of {len(parts)} folders is too deep")
        return "/".join(parts) or "."

    def open(self, path: str, flags: int, mode: int = 0o644) -> int:
        """A file descriptor for a path. Checks policy on where the path really led."""
        name = self.relative(path)
        # openat2 refuses O_NOCTTY beside O_PATH, where it would mean nothing.
        quiet = 0 if flags & os.O_PATH else os.O_NOCTTY
        fd = self._open(self.fd, name, flags | os.O_CLOEXEC | quiet, mode)
        try:
            self._check(self._real(fd), writes=bool(flags & (os.O_WRONLY | os.O_RDWR)))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def open_parent(self, path: str, create: bool = False) -> tuple[int, str]:
        """The open folder that holds `path`, and the last name; for creating and renaming.

        With `create`, missing folders are made. Raises `Outside` where writing is not allowed.
        """
        name = self.relative(path)
        folder, _, last = name.rpartition("/")
        if last in (".", ".."):
            raise Outside(f"{path!r} names no file")
        if create and folder:
            self._make_folders(folder)
        fd = self.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._check(os.path.join(self._real(fd), last), writes=True)
        except BaseException:
            os.close(fd)
            raise
        return fd, last

    def permits(self, relative: str, writes: bool) -> bool:
        """What policy says of a path given from the root; text alone."""
        parts = _parts(relative)
        if any(_within(parts, hidden) for hidden in self._hidden):
            return False
        return not (writes and any(_within(parts, kept) for kept in self._read_only))

    def _check(self, real: str, writes: bool) -> None:
        if real != self.root and not real.startswith(self.root.rstrip("/") + "/"):
            raise Outside("the path leads outside the workspace")
        relative = real[len(self.root) :].lstrip("/")
        if not self.permits(relative, writes=False):
            raise Outside(f"{relative!r} is hidden from this agent")
        if writes and not self.permits(relative, writes=True):
            raise Outside(f"{relative!r} is read-only for this agent")

    def _make_folders(self, folder: str) -> None:
        made = ""
        for part in folder.split("/"):
            if part == "..":
                raise Outside("a path with '..' creates no folders")
            parent, made = made, f"{made}/{part}" if made else part
            fd = self.open(parent or ".", os.O_RDONLY | os.O_DIRECTORY)
            try:
                self._check(os.path.join(self._real(fd), part), writes=True)
                os.mkdir(part, 0o755, dir_fd=fd)
            except FileExistsError:
                pass
            finally:
                os.close(fd)

    def _real(self, fd: int) -> str:
        return os.readlink(f"/proc/self/fd/{fd}")

    def _open(self, root_fd: int, name: str, flags: int, mode: int) -> int:
        if self._use_openat2:
            try:
                return _openat2(root_fd, name, flags, mode)
            except OSError as error:
                if error.errno == errno.EXDEV:
                    raise Outside(f"{name!r} leads outside the workspace") from None
                if error.errno not in (errno.ENOSYS, errno.EPERM):
                    raise
                self._use_openat2 = False
        return _walk(root_fd, name, flags, mode)


def _openat2(root_fd: int, name: str, flags: int, mode: int) -> int:
    how = _OpenHow(
        flags, mode if flags & os.O_CREAT else 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS
    )
    fd = _libc.syscall(
        _SYS_OPENAT2, root_fd, os.fsencode(name), ctypes.byref(how), ctypes.sizeof(how)
    )
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return int(fd)


def _walk(root_fd: int, name: str, flags: int, mode: int) -> int:
    """The fallback: one component at a time, no links, `..` refused."""
    parts = [part for part in name.split("/") if part != "."]
    if ".." in parts:
        raise Outside(f"{name!r} leads outside the workspace")
    at = os.dup(root_fd)
    try:
        for part in parts[:-1]:
            deeper = _step(at, part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, 0)
            os.close(at)
            at = deeper
        return _step(at, parts[-1] if parts else ".", flags, mode)
    finally:
        os.close(at)


def _step(at: int, part: str, flags: int, mode: int) -> int:
    try:
        return os.open(part, flags | os.O_NOFOLLOW, mode, dir_fd=at)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and _is_link(at, part):
            raise Outside(f"{part!r} is a link, and links cannot be checked here") from None
        raise


def _is_link(at: int, part: str) -> bool:
    return stat.S_ISLNK(os.stat(part, dir_fd=at, follow_symlinks=False).st_mode)


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.split("/") if part not in ("", "."))


def _within(parts: tuple[str, ...], folder: tuple[str, ...]) -> bool:
    return parts[: len(folder)] == folder and bool(folder)
