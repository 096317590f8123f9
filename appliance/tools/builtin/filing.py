"""Tools on the files of the workspace: read, write, edit, list, search."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from appliance.tools import files
from appliance.tools.builtin.base import (
    ChangeFiles,
    Program,
    ReadFiles,
    Work,
    count,
    flag,
    object_schema,
    text,
)
from appliance.tools.confine import Workspace
from appliance.tools.detached import Done
from appliance.tools.types import ToolContext
from appliance.types import Effect, Json, ToolSpec

CONTENT_MAX_CHARS = 4 << 20
LINES_MAX = 1_000_000
_PATH = "Path of the file, from the workspace."
_NO_MATCH = 1


@dataclass(frozen=True, slots=True)
class ReadFile:
    leaves_machine = False
    spec = ToolSpec(
        "read_file",
        "Read a text file of the workspace, or some of its lines.",
        object_schema(
            ("path",),
            path=text(_PATH),
            first_line=count("First line wanted, counted from 1.", LINES_MAX),
            lines=count("How many lines; without it, to the end.", LINES_MAX),
        ),
        Effect.READ,
    )

    def summary(self, arguments: Mapping[str, Json], ctx: ToolContext) -> str:
        return f"read {arguments['path']}"

    def work(self, call_id: str, arguments: Mapping[str, Json], ctx: ToolContext) -> Work:
        return ReadFiles("read_file", arguments)


@dataclass(frozen=True, slots=True)
class WriteFile:
    leaves_machine = False
    spec = ToolSpec(
        "write_file",
        "Create or replace a file of the workspace with the content given. Folders are made.",
        object_schema(
            ("path", "content"),
            path=text(_PATH),
            content=text("The whole new content.", CONTENT_MAX_CHARS),
        ),
        Effect.IDEMPOTENT,
        raw_body="content",
    )

    def summary(self, arguments: Mapping[str, Json], ctx: ToolContext) -> str:
        path, content = arguments["path"], arguments["content"]
        before = _current(ctx, path)
        if before is None:
            return f"create {path}\n" + files.diff(path, "", content)
        return f"replace {path}\n" + files.diff(path, before, content)

    def work(self, call_id: str, arguments: Mapping[str, Json], ctx: ToolContext) -> Work:
        return ChangeFiles("write_file", arguments)


@dataclass(frozen=True, slots=True)
class EditFile:
    """`once`, not `idempotent`: after `a` became `ab`, the same edit would make `abb`."""

    leaves_machine = False
    spec = ToolSpec(
        "edit_file",
        "Replace text in a file. `old` must stand in it exactly, with its white space, and once.",
        object_schema(
            ("path", "old", "new"),
            path=text(_PATH),
            old=text("The text to replace, exactly as in the file.", CONTENT_MAX_CHARS)
            | {"minLength": 1},
            new=text("What to put there.", CONTENT_MAX_CHARS),
            replace_all=flag("Replace every place where it stands."),
        ),
        Effect.ONCE,
    )

    def summary(self, arguments: Mapping[str, Json], ctx: ToolContext) -> str:
        path, old, new = arguments["path"], arguments["old"], arguments["new"]
        before = _current(ctx, path)
        if before is None or old not in before:
            return f"edit {path}\n" + files.diff(path, old, new)
        places = -1 if arguments.get("replace_all") else 1
        return f"edit {path}\n" + files.diff(path, before, before.replace(old, new, places))

    def work(self, call_id: str, arguments: Mapping[str, Json], ctx: ToolContext) -> Work:
        return ChangeFiles("edit_file", arguments)


@dataclass(frozen=True, slots=True)
class ListFiles:
    leaves_machine = False
    spec = ToolSpec(
        "list_files",
        "List files and folders of the workspace.",
        object_schema(
            (),
            path=text("Folder to list; without it, the workspace."),
            pattern=text("Only names that match, such as *.py.", 256),
            depth=count("How many levels deep; 3 without it.", 16),
        ),
        Effect.READ,
    )

    def summary(self, arguments: Mapping[str, Json], ctx: ToolContext) -> str:
        return f"list {arguments.get('path', '.')}"

    def work(self, call_id: str, arguments: Mapping[str, Json], ctx: ToolContext) -> Work:
        return ReadFiles("list_files", arguments)


@dataclass(frozen=True, slots=True)
class SearchFiles:
    """In a process of its own either way: a regular expression can run for ever."""

    leaves_machine = False
    spec = ToolSpec(
        "search_files",
        "Search the workspace for lines that match a regular expression.",
        object_schema(
            ("pattern",),
            pattern=text("Regular expression.", 1_000),
            path=text("File or folder to search; without it, the workspace."),
            files=text("Only files whose name matches, such as *.py.", 256),
            ignore_case=flag("Ignore upper and lower case."),
        ),
        Effect.READ,
    )

    def summary(self, arguments: Mapping[str, Json], ctx: ToolContext) -> str:
        return f"search {arguments.get('path', '.')} for {arguments['pattern']}"

    def work(self, call_id: str, arguments: Mapping[str, Json], ctx: ToolContext) -> Work:
        ripgrep = shutil.which("rg", path="/usr/bin:/bin")
        if ripgrep is None:
            return ChangeFiles("search_files", arguments)
        with Workspace(str(ctx.workspace)) as workspace:
            where = workspace.relative(arguments.get("path", "."))
        argv = [ripgrep, "--no-config", "--line-number", "--no-heading", "--with-filename"]
        argv += ["--color=never", "--hidden", "--glob=!.git", f"--glob=!{files.OUTPUTS_FOLDER}"]
        argv += [f"--max-columns={files.LINE_MAX_CHARS}", "--max-count=200", "--sort=path"]
        argv += [f"--glob={arguments['files']}"] if arguments.get("files") else []
        argv += ["--ignore-case"] if arguments.get("ignore_case") else []
        return Program((*argv, f"--regexp={arguments['pattern']}", "--", where), _search_result)


def _search_result(done: Done) -> tuple[bytes, bool]:
    if done.exit_code == _NO_MATCH and not done.output:
        return b"(no match)", False
    return done.output, bool(done.exit_code) or bool(done.ended_by)


def _current(ctx: ToolContext, path: str) -> str | None:
    """The file as it is now, for a diff; None where there is none that could be shown."""
    try:
        policy = ctx.policy
        with Workspace(str(ctx.workspace), policy.read_only, policy.hidden) as workspace:
            return files.read_file(workspace, path).decode()
    except (files.FileProblem, UnicodeDecodeError, OSError):
        return None


TOOLS = (ReadFile(), WriteFile(), EditFile(), ListFiles(), SearchFiles())
