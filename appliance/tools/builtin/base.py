"""What a built-in tool is: a description for the model, a summary for people, and its work.

A tool decides; it does nothing. Its work is one of a few values, carried out by `registry`:
reading in a thread of the daemon, file changes and programs in the detached runner, and requests
to other rooms through `ports`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from appliance.tools.detached import Done
from appliance.tools.ports import Ports
from appliance.tools.types import ToolContext
from appliance.types import Json, Label, ToolSpec


@dataclass(frozen=True, slots=True)
class ReadFiles:
    """A function of `tools.files` that only reads and whose cost is bounded by itself."""

    function: str
    arguments: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class ChangeFiles:
    """A function of `tools.files`, in the runner: also one that reads at an unbounded cost."""

    function: str
    arguments: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Program:
    """A program in the sandbox. `read` makes its end into text and whether that is an error;
    without one, a non-zero exit is told beside the output and is an error. `takes_hosts`: the
    hosts of its agent are open to it."""

    argv: tuple[str, ...]
    read: Callable[[Done], tuple[bytes, bool]] | None = None
    takes_hosts: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """What another room said: text or bytes, how sensitive, whether it is an error, how long it
    waited for people and what it cost."""

    data: bytes
    label: Label
    is_error: bool = False
    waited_ms: int = 0
    spent_micro_usd: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """Something another room does, idempotent by the call's id."""

    ask: Callable[[Ports, float], Awaitable[Reply]]
    """Ports and the seconds left."""


Work: TypeAlias = ReadFiles | ChangeFiles | Program | Request


class BuiltIn(Protocol):
    """One built-in tool. Pure."""

    @property
    def spec(self) -> ToolSpec: ...

    @property
    def leaves_machine(self) -> bool:
        """Whether arguments of it are sent to other machines."""
        ...

    def summary(self, arguments: Mapping[str, Json], ctx: ToolContext) -> str:
        """Exactly what would run, for people. May read the workspace, boundedly."""
        ...

    def work(self, call_id: str, arguments: Mapping[str, Json], ctx: ToolContext) -> Work: ...


def object_schema(required: tuple[str, ...], **properties: Json) -> dict[str, Json]:
    """A flat, closed object: what small models get right most often."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def text(description: str, max_length: int = 4_096) -> dict[str, Json]:
    return {"type": "string", "description": description, "maxLength": max_length}


def count(description: str, maximum: int, minimum: int = 1) -> dict[str, Json]:
    return {
        "type": "integer", "description": description, "minimum": minimum, "maximum": maximum,
    }  # fmt: skip


def flag(description: str) -> dict[str, Json]:
    return {"type": "boolean", "description": description}
