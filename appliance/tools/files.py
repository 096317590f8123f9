"""What the file tools do, on an open `Workspace`: read, write, edit, list, search.

Each takes plain values and returns text for the model, or raises `FileProblem` with a sentence
the model can act on. Standard library only: reading runs in the daemon's threads, writing in the
detached runner, both from this file.
"""

import contextlib
import difflib
import fnmatch
import os
import re
import stat
from collections.abc import Iterator

from appliance.tools.confine import Outside, Workspace

FILE_MAX_BYTES = 16 << 20
"""A larger file is not read whole: it would not fit a model, and the daemon has other work."""

ENTRIES_MAX = 2_000
"""Entries of one listing, matches of one search: past this a model is lost, not helped."""

WALK_MAX = 50_000
"""Files looked at by one search, so that a huge tree ends in seconds."""

DIFF_MAX_LINES = 2_000
"""Comparing takes time with the square of this, and a person is waiting."""

LINE_MAX_CHARS = 400
SKIPPED_FOLDERS = frozenset({".git", "node_modules", "__pycache__", ".venv"})
OUTPUTS_FOLDER = ".outputs"
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")


class FileProblem(Exception):
    """Something the model asked of a file cannot be done; the message says what and what next."""


def read_file(workspace: Workspace, path: str, first_line: int = 1, lines: int = 0) -> bytes:
    """A file's bytes, or its lines `first_line` (from 1) on; `lines` 0 means to the end."""
    data = _read(workspace, path)
    if first_line <= 1 and not lines:
        return data
    kept = data.splitlines(keepends=True)[max(first_line, 1) - 1 :]
    return b"".join(kept[:lines] if lines else kept)


def write_file(workspace: Workspace, path: str, content: str) -> str:
    """Replace or create a file, atomically: a reader sees the old or the new one, never half."""
    data = content.encode("utf-8", "surrogatepass")
    existed = _replace(workspace, path, data)
    return f"{'Replaced' if existed else 'Created'} {path}: {len(data)} bytes."


def edit_file(
    workspace: Workspace, path: str, old: str, new: str, replace_all: bool = False
) -> str:
    """Replace text that must stand in the file exactly, and once unless `replace_all`."""
    data = _read(workspace, path)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise FileProblem(f"{path} is not text (UTF-8); it cannot be edited.") from None
    count = text.count(old)
    if count == 0:
        raise FileProblem(f"The text to replace is not in {path}.{_nearest(text, old)}")
    if count > 1 and not replace_all:
        raise FileProblem(
            f"The text to replace stands {count} times in {path}. Give more of the lines around "
            "it, or set replace_all."
        )
    _replace(workspace, path, text.replace(old, new).encode("utf-8", "surrogatepass"))
    return f"Edited {path}: {count} place{'s' if count > 1 else ''}."


def list_files(workspace: Workspace, path: str = ".", pattern: str = "", depth: int = 3) -> str:
    """Entries below a folder, sorted, folders with a slash, files with their size in bytes."""
    entries = []
    for name, info in _walk(workspace, path, depth):
        is_folder = stat.S_ISDIR(info.st_mode)
        if pattern and (is_folder or not _matches(name, pattern)):
            continue
        shown = _CONTROLS.sub(_escaped, name)
        entries.append(f"{shown}/" if is_folder else f"{shown}  {info.st_size}")
        if len(entries) >= ENTRIES_MAX:
            entries.append(f"… more than {ENTRIES_MAX} entries; name a deeper folder.")
            break
    return "\n".join(entries) or "(nothing here)"


def search_files(
    workspace: Workspace, pattern: str, path: str = ".", files: str = "", ignore_case: bool = False
) -> str:
    """Lines that match a regular expression, as `file:line: text`; without ripgrep."""
    try:
        wanted = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
    except re.error as error:
        raise FileProblem(f"The pattern is no regular expression: {error}.") from None
    found: list[str] = []
    for name, info in _walk(workspace, path, depth=32):
        if not stat.S_ISREG(info.st_mode) or info.st_size > FILE_MAX_BYTES:
            continue
        if files and not _matches(name, files):
            continue
        data = _read(workspace, name)
        if b"\0" in data[:8192]:
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            if wanted.search(line[:10_000]):
                found.append(f"{name}:{number}: {line[:LINE_MAX_CHARS].rstrip()}")
                if len(found) >= ENTRIES_MAX:
                    return "\n".join([*found, f"… more than {ENTRIES_MAX} matches."])
    return "\n".join(found) or "(no match)"


def keep_output(workspace: Workspace, call_id: str, data: bytes, ending: str = ".txt") -> str:
    """Store a whole output in the workspace; returns its path, to be told to the model."""
    path = f"{OUTPUTS_FOLDER}/{call_id}{ending}"
    _replace(workspace, path, data)
    return path


def diff(path: str, before: str, after: str) -> str:
    """A unified diff for people; of what is too large to compare, both sides whole."""
    if max(before.count("\n"), after.count("\n")) > DIFF_MAX_LINES:
        lines = [f"-{line}" for line in before.splitlines()]
        lines += [f"+{line}" for line in after.splitlines()]
        return "\n".join([f"--- a/{path}", f"+++ b/{path}", *lines])
    found = difflib.unified_diff(
        before.splitlines(), after.splitlines(), f"a/{path}", f"b/{path}", lineterm="", n=3
    )
    return "\n".join(found)


def _read(workspace: Workspace, path: str) -> bytes:
    # O_NONBLOCK: a FIFO in the workspace must not hold us up; it is refused below.
    fd = _open(workspace, path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(fd)
        if stat.S_ISDIR(info.st_mode):
            raise FileProblem(f"{path} is a folder; use list_files.")
        if not stat.S_ISREG(info.st_mode):
            raise FileProblem(f"{path} is no ordinary file.")
        if info.st_size > FILE_MAX_BYTES:
            raise FileProblem(
                f"{path} has {info.st_size} bytes, more than {FILE_MAX_BYTES}; use search_files."
            )
        return file.read(FILE_MAX_BYTES)


def _open(workspace: Workspace, path: str, flags: int) -> int:
    try:
        return workspace.open(path, flags)
    except Outside as error:
        raise FileProblem(f"Not allowed: {error}.") from None
    except OSError as error:
        raise FileProblem(f"{path}: {error.strerror}.") from None


def _replace(workspace: Workspace, path: str, data: bytes) -> bool:
    """Write beside, fsync, rename over. Returns whether a file was there. Cuts hard links."""
    try:
        folder, name = workspace.open_parent(path, create=True)
    except Outside as error:
        raise FileProblem(f"Not allowed: {error}.") from None
    except OSError as error:
        raise FileProblem(f"{path}: {error.strerror}.") from None
    beside = f".{name[:200]}.{os.getpid()}.new"
    try:
        mode = _mode_of(folder, name)
        fd = os.open(
            beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=folder
        )
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            if mode is not None:
                os.fchmod(fd, mode)
            os.fsync(fd)
        os.rename(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    except OSError as error:
        raise FileProblem(f"{path}: {error.strerror}.") from None
    finally:
        with contextlib.suppress(OSError):  # renamed, or never made
            os.unlink(beside, dir_fd=folder)
        os.close(folder)
    return mode is not None


def _mode_of(folder: int, name: str) -> int | None:
    """Permission bits of what a write would replace; refuses what is no ordinary file."""
    try:
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(info.st_mode):
        raise FileProblem(f"{name} is a link; write to what it points at.")
    if not stat.S_ISREG(info.st_mode):
        raise FileProblem(f"{name} is no ordinary file.")
    return stat.S_IMODE(info.st_mode) & 0o777


def _walk(workspace: Workspace, path: str, depth: int) -> Iterator[tuple[str, os.stat_result]]:
    """Entries below a folder in sorted order, links not followed, well-known bulk left out."""
    top = workspace.relative(path)
    pending = [("" if top == "." else top, 0)]
    looked_at = 0
    while pending:
        folder, level = pending.pop()
        fd = _open(workspace, folder or ".", os.O_RDONLY | os.O_NONBLOCK)
        deeper = []
        try:
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                yield folder, os.fstat(fd)
                return
            for name in sorted(os.listdir(fd)):
                looked_at += 1
                if looked_at > WALK_MAX:
                    return
                inside = f"{folder}/{name}" if folder else name
                if not workspace.permits(inside, writes=False):
                    continue
                try:
                    info = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except OSError:
                    continue  # gone since it was listed
                if name == OUTPUTS_FOLDER and not folder:
                    continue
                yield inside, info
                if stat.S_ISDIR(info.st_mode) and level + 1 < depth and name not in SKIPPED_FOLDERS:
                    deeper.append((inside, level + 1))
        finally:
            os.close(fd)
        pending.extend(reversed(deeper))


def _escaped(match: re.Match[str]) -> str:
    """A line end in a name would make one entry look like two."""
    return f"\\x{ord(match[0]):02x}"


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name.rpartition("/")[2], pattern)


def _nearest(text: str, old: str) -> str:
    """The line most like the first line wanted: it saves a small model a second reading."""
    first = next((line for line in old.splitlines() if line.strip()), "")
    if not first:
        return ""
    lines = text.splitlines()[:5_000]
    close = difflib.get_close_matches(first, lines, n=1, cutoff=0.6)
    return f" The nearest line is {lines.index(close[0]) + 1}: {close[0]!r}." if close else ""
