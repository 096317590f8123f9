"""What tools need from rooms above or beside them; the daemon satisfies each."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from appliance.egress.gate import Gate
from appliance.tools.types import ToolContext
from appliance.types import Json, Label


@dataclass(frozen=True, slots=True)
class Fetched:
    """A page, as egress brought it: at most the bytes asked for."""

    status: int
    media_type: str
    body: bytes
    final_url: str


class Fetcher(Protocol):
    """The door out, for GET only. Raises `EgressDenied` for hosts or labels it does not let out,
    and other `ApplianceError`s for a network that fails."""

    async def get(self, url: str, label: Label, max_bytes: int, timeout_s: float) -> Fetched: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What another agent said. `is_error` when its turn failed or was refused; `waited_ms` is what
    people took to answer questions of it, `spent_micro_usd` what it cost."""

    text: str
    label: Label
    is_error: bool = False
    waited_ms: int = 0
    spent_micro_usd: int = 0


class Delegate(Protocol):
    """Runs a child turn. The same `key` joins the turn that it started the first time, also
    after a restart: asking twice is asking once."""

    async def ask(self, agent: str, prompt: str, key: str, ctx: ToolContext) -> Answer: ...


@dataclass(frozen=True, slots=True)
class Note:
    note_id: str
    text: str
    label: Label


class Notes(Protocol):
    """What agents remember. `remember` with a key already used changes nothing."""

    async def remember(self, text: str, key: str, ctx: ToolContext) -> str: ...

    async def recall(self, query: str, limit: int, ctx: ToolContext) -> tuple[Note, ...]: ...


class Elicitor(Protocol):
    """Puts an MCP server's question to a person, as an approval. None: declined."""

    async def elicit(
        self, server: str, message: str, schema: Mapping[str, Json], ctx: ToolContext
    ) -> Mapping[str, Json] | None: ...


class Sampler(Protocol):
    """Runs an MCP server's prompt, as (role, text) pairs, on a model of the router's choice, on
    the label and budget of the call in `ctx`. Raises `ApplianceError`."""

    async def sample(
        self,
        server: str,
        system: str,
        messages: tuple[tuple[str, str], ...],
        max_tokens: int,
        ctx: ToolContext,
    ) -> str: ...


UNREACHED = "appliance-unreached"
"""Header of the answer that stands for a server which no connection could be made to: why."""


class HttpDoor(Protocol):
    """An HTTP client through egress for one MCP server's URL (an `httpx2.AsyncClient`). As behind
    a gateway, a server that cannot be reached is an answer (502, with `UNREACHED`)."""

    def client(self, url: str, bearer: str) -> AbstractAsyncContextManager[Any]: ...


def workspace_place(owner: str) -> str:
    """The name, as a place, of the workspace of this session."""
    return f"workspace/{owner}"


def server_place(name: str) -> str:
    """The name, as a place, of an MCP server."""
    return f"mcp/{name}"


class Places(Protocol):
    """The label of what was left at a place. It only ever rises."""

    async def of(self, place: str) -> Label: ...

    async def raise_to(self, place: str, label: Label) -> Label: ...


class Secrets(Protocol):
    def get(self, name: str) -> str | None:
        """A systemd credential or variable of this name."""
        ...


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything injected. What is missing makes its tools say that they are not available."""

    fetcher: Fetcher | None = None
    delegate: Delegate | None = None
    notes: Notes | None = None
    elicitor: Elicitor | None = None
    sampler: Sampler | None = None
    http: HttpDoor | None = None
    gate: Gate | None = None
    places: Places | None = None
    secrets: Secrets | None = None
