"""What we take from a server's list of tools: pure, and trusting nothing in it.

A description reaches a model's prompt and is written by a stranger: it is bounded, cleaned of
characters that hide, and its tool carries the server's name, so that it cannot pass for one of ours
or of another server. The whole list has a digest; a list that differs from the one that was pinned
is not used until somebody has looked at it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from appliance.tools.output import clean, visible
from appliance.tools.schema import schema_problem
from appliance.types import Effect, Json, ToolSpec

TOOLS_MAX = 128
DESCRIPTION_MAX_CHARS = 1_024
NAME_MAX_CHARS = 64
SEPARATOR = "__"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,48}")


@dataclass(frozen=True, slots=True)
class RemoteTool:
    """One tool of a server. `their_name` is what the server calls it."""

    their_name: str
    spec: ToolSpec


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The usable tools of one server by our name, the digest of all it listed, and what was left
    out and why."""

    tools: Mapping[str, RemoteTool]
    digest: str
    left_out: tuple[str, ...] = ()


def sound(listing: Sequence[Mapping[str, Json]]) -> tuple[list[dict[str, Json]], list[str]]:
    """The first entries of a list whose schemas can be used, and why others cannot. Slow: it
    checks every schema, some milliseconds each; once per list, off the loop."""
    kept: list[dict[str, Json]] = []
    left_out: list[str] = []
    for entry in listing[:TOOLS_MAX]:
        problem = schema_problem(entry.get("inputSchema"))
        if problem:
            left_out.append(f"{visible(str(entry.get('name')), 80)}: {problem}")
        else:
            kept.append(dict(entry))
    if len(listing) > TOOLS_MAX:
        left_out.append(f"{len(listing) - TOOLS_MAX} more than {TOOLS_MAX} tools")
    return kept, left_out


def catalogue(
    server: str,
    listing: Sequence[Mapping[str, Json]],
    digest: str,
    wanted: Sequence[str] = (),
    effects: Mapping[str, Effect] | None = None,
) -> Catalogue:
    """A catalogue of a sound list of a server, as its JSON has it.

    `digest` is that of the whole list; `wanted` are patterns of their names, empty for all;
    `effects` override what the server's annotations say of itself.
    """
    tools: dict[str, RemoteTool] = {}
    left_out: list[str] = []
    for entry in listing:
        name = str(entry.get("name", ""))
        if wanted and not any(fnmatchcase(name, pattern) for pattern in wanted):
            continue
        ours = f"{server}{SEPARATOR}{name.replace('.', '_')}"
        problem = _problem(name, ours, tools) or _task_only(entry.get("execution"))
        if problem:
            left_out.append(f"{visible(name, 80)}: {problem}")
            continue
        spec = ToolSpec(
            name=ours,
            description=_description(server, str(entry.get("description") or "")),
            input_schema=entry["inputSchema"],
            effect=(effects or {}).get(name) or _effect(entry.get("annotations") or {}),
        )
        tools[ours] = RemoteTool(name, spec)
    return Catalogue(tools, digest, tuple(left_out))


def digest_of(listing: Sequence[Mapping[str, Json]]) -> str:
    """SHA-256 of all that could matter: names, descriptions, schemas, annotations; order aside."""
    kept = sorted(
        json.dumps(
            [entry.get(key) for key in ("name", "title", "description", "inputSchema")]
            + [entry.get("annotations")],
            sort_keys=True,
        )
        for entry in listing
    )
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()


def _problem(name: str, ours: str, taken: Mapping[str, RemoteTool]) -> str:
    if not _NAME.fullmatch(name) or len(ours) > NAME_MAX_CHARS:
        return "no usable name"
    return "the name is there twice" if ours in taken else ""


def _task_only(execution: Any) -> str:
    """A tool that only runs as a task (an experiment of the protocol) refuses every plain call."""
    needs_task = isinstance(execution, Mapping) and execution.get("taskSupport") == "required"
    return "it runs only as a task of the protocol" if needs_task else ""


def _description(server: str, text: str) -> str:
    shown = visible(clean(text), DESCRIPTION_MAX_CHARS)
    return f"(from {server}) {' '.join(shown.split())}"


def _effect(annotations: Mapping[str, Json]) -> Effect:
    """What the server says of itself. A lie here costs a repeated call of its own tool; whether
    a call needs approval is better said in the agent's rules."""
    if annotations.get("readOnlyHint") is True:
        return Effect.READ
    return Effect.IDEMPOTENT if annotations.get("idempotentHint") is True else Effect.ONCE
