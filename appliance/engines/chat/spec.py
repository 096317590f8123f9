"""What an answer must be, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from appliance.engines.chat.syntax import CallSyntax, Framing
from appliance.types import Json, ToolSpec


class CallMode(Enum):
    NONE = auto()
    AUTO = auto()
    REQUIRED = auto()


@dataclass(frozen=True, slots=True)
class ConstraintSpec:
    """`tools` are those that may be called; `syntax` is None where none may."""

    syntax: CallSyntax | None
    framing: Framing
    tools: tuple[ToolSpec, ...] = ()
    mode: CallMode = CallMode.NONE
    parallel: bool = True
    response_schema: Mapping[str, Json] | None = None
    thinking: bool = False
