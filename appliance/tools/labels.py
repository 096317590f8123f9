"""Which calls touch what the operator's rules call sensitive: `[tools] labels`.

A rule names a tool, or files. That of a tool holds for all it returns. That of files holds for
whoever reads one by name; for a search, if it found something in one; and for a program whenever
one is in the workspace, since nobody sees what a program reads. Links are followed first. The names
in a folder that a rule is for are as sensitive as the files; a name that a rule is for is not.

Rules may come later than the calls: `of_calls` says what the calls of a history are by today's.

Looks into the workspace, boundedly, and decides nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from appliance.config.schema import Config
from appliance.config.tools import LabelRule
from appliance.tools.mcp.catalogue import SEPARATOR
from appliance.tools.types import Intent
from appliance.types import Label, Message, highest

ENTRIES_MAX = 50_000
DEPTH_MAX = 64
"""A workspace of more, or deeper, is taken to hold everything the rules speak of."""
_BY_PATH = frozenset({"read_file", "edit_file", "list_files"})


def of_tool(rules: Sequence[LabelRule], tool: str) -> Label:
    """The least label of what a tool returns."""
    return highest(
        Label.PUBLIC, *(rule.label for rule in rules if rule.tool and fnmatchcase(tool, rule.tool))
    )


def of_path(rules: Sequence[LabelRule], path: str) -> Label:
    """The least label of a file, by its path from the workspace. `*` also stands for folders, and
    a rule for a folder holds for all that is in it."""
    found = [Label.PUBLIC]
    parts = [part for part in path.split("/") if part not in ("", ".")]
    names = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    for rule in rules:
        if rule.path and any(fnmatchcase(name, rule.path.rstrip("/")) for name in names):
            found.append(rule.label)
    return highest(*found)


def touched(rules: Sequence[LabelRule], intent: Intent, workspace: Path, is_program: bool) -> Label:
    """What a call may come to know, before it runs."""
    label = of_tool(rules, intent.tool)
    if not any(rule.path for rule in rules):
        return label
    if intent.tool in _BY_PATH:
        return highest(label, _of_named(rules, str(intent.arguments.get("path", ".")), workspace))
    if is_program:
        return highest(label, *(of_path(rules, path) for path in _files(rules, workspace)))
    return label


def found_in(rules: Sequence[LabelRule], output: bytes, workspace: Path) -> Label:
    """What a search, which says the file of every line, came upon."""
    return highest(
        Label.PUBLIC,
        *(
            of_path(rules, path)
            for path in _files(rules, workspace)
            if path.encode("utf-8", "surrogateescape") + b":" in output
        ),
    )


def of_names(rules: Sequence[LabelRule], listing: str) -> Label:
    """What a list of files gives away: names that only somebody inside a folder could know."""
    found = [Label.PUBLIC]
    folders = [rule for rule in rules if "/" in rule.path.rstrip("/")]
    for line in listing.splitlines():
        name = line.rpartition("  ")[0] or line.rstrip("/")
        found += [of_path(folders, name), of_path(rules, os.path.dirname(name))]
    return highest(*found)


def of_calls(config: Config, messages: Iterable[Message]) -> Label:
    """What came back from the calls in these messages, by the rules as they are now: those of
    tools and files by the names that were given, the servers', and the agents' that were asked."""
    found = [Label.PUBLIC]
    rules = config.tools.labels
    for call in (call for message in messages for call in message.tool_calls):
        found.append(of_tool(rules, call.name))
        server = config.mcp.get(call.name.partition(SEPARATOR)[0])
        if server is not None:
            found.append(server.label)
        if call.name in _BY_PATH:
            found.append(of_path(rules, os.path.normpath(str(call.arguments.get("path", ".")))))
        if call.name == "ask_agent":
            asked = config.agents.get(str(call.arguments.get("agent")))
            found.append(Label.PUBLIC if asked is None else asked.label)
    return highest(*found)


def _of_named(rules: Sequence[LabelRule], path: str, workspace: Path) -> Label:
    root = os.path.realpath(workspace)
    named = os.path.relpath(os.path.normpath(os.path.join(root, path)), root)
    real = os.path.relpath(os.path.realpath(os.path.join(root, path)), root)
    return highest(of_path(rules, named), of_path(rules, real))


def _files(rules: Sequence[LabelRule], workspace: Path) -> Iterator[str]:
    """Paths that rules speak of; where there are too many files to look at, the rules' own."""
    seen = 0
    for folder, folders, names in os.walk(workspace):
        where = os.path.relpath(folder, workspace)
        seen += len(folders) + len(names)
        if seen > ENTRIES_MAX or where.count("/") > DEPTH_MAX:
            yield from (rule.path for rule in rules if rule.path)
            return
        for name in names:
            path = os.path.normpath(os.path.join(where, name))
            if of_path(rules, path) is not Label.PUBLIC:
                yield path
