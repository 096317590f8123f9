"""What the tools room speaks of: a call's surroundings, its intent, its decision, its outcome.

All values are frozen; nothing here does I/O. An `Intent` is what an approval is given for: its
`call_hash` binds tool, arguments, working folder and environment, so that what was approved is
what runs, or nothing does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from appliance.types import Effect, ImageBlock, Json, Label, TextBlock


@dataclass(frozen=True, slots=True)
class FilePolicy:
    """What of a workspace a call may not touch: paths relative to it, whole folders included.

    `read_only` paths can be read and not written, `hidden` ones neither. Holds for the file tools
    and, as mounts, for every process in the sandbox.
    """

    read_only: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Grant:
    """A standing permission a person gave (`allow_always`) or refusal (`reject_always`).

    Holds for one agent and one tool; `arguments` are patterns as in an approval rule, empty for
    any arguments.
    """

    agent: str
    tool: str
    allow: bool
    arguments: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ToolContext:
    """Around one call. `workspace` is the session's folder, absolute; `deadline_s` is monotonic.

    `label` is the highest label of what the call was derived from; results never have a lower
    one. `uid` is the person the turn belongs to. `hosts` are what its shell may reach. `grants`
    are the person's standing answers, from the journal.
    """

    session_id: str
    turn_id: str
    step_id: str
    agent: str
    workspace: Path
    label: Label = Label.INTERNAL
    deadline_s: float | None = None
    uid: int = -1
    policy: FilePolicy = FilePolicy()
    hosts: tuple[str, ...] = ()
    grants: tuple[Grant, ...] = ()


@dataclass(frozen=True, slots=True)
class Intent:
    """A call that is well-formed and permitted in principle: exactly what would run.

    `summary` is for people: the command line, the diff, the server and its arguments, with
    control characters made visible.
    """

    call_id: str
    tool: str
    arguments: Mapping[str, Json]
    effect: Effect
    summary: str
    call_hash: str


@dataclass(frozen=True, slots=True)
class ToolOutcome:
    """What came back. `truncated` content continues in the file `full_output_path`."""

    call_id: str
    content: tuple[TextBlock | ImageBlock, ...]
    is_error: bool = False
    label: Label = Label.PUBLIC
    truncated: bool = False
    full_output_path: str | None = None
    duration_ms: int = 0
    waited_ms: int = 0
    """What of that a person took to answer questions of another agent's turn."""
    spent_micro_usd: int = 0
    """What another agent's turn cost."""


@dataclass(frozen=True, slots=True)
class InDoubt:
    """Whether the call took effect is not known. `probe` says what a look at the world showed."""

    call_id: str
    reason: str
    probe: str | None = None


@dataclass(frozen=True, slots=True)
class NotStarted:
    """The call has certainly not begun, or repeating it is the same as doing it once."""

    call_id: str


@dataclass(frozen=True, slots=True)
class Allow:
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    question: str


@dataclass(frozen=True, slots=True)
class Deny:
    reason: str


Verdict: TypeAlias = Allow | Ask | Deny


def call_hash(
    tool: str, arguments: Mapping[str, Json], cwd: Path, environment: Mapping[str, str]
) -> str:
    """SHA-256, in hex, of the canonical JSON of what would run and where."""
    body = json.dumps(
        [tool, arguments, str(cwd), environment],
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=True,
        default=dict,
    )
    return hashlib.sha256(body.encode()).hexdigest()


def error_outcome(call_id: str, message: str, label: Label = Label.PUBLIC) -> ToolOutcome:
    """A refusal or failure told to the model."""
    return ToolOutcome(call_id, (TextBlock(message, label),), is_error=True, label=label)
