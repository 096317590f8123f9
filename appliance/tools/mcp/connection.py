"""One open connection to a server: the only file that speaks to the SDK's session.

Results are taken as the protocol's own values and never validated against schemas that the server
sent: those are a stranger's regular expressions and references. Imported only once a server is in
use, because the SDK is heavy and most machines have none configured.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import mcp_types as protocol
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from appliance.tools.mcp.catalogue import TOOLS_MAX
from appliance.tools.mcp.patience import Patience
from appliance.tools.mcp.stdio import Launch, Pipe, open_pipe
from appliance.tools.ports import UNREACHED, HttpDoor
from appliance.types import Json

PAGES_MAX = 16
PING_TIMEOUT_S = 1.0
_METHOD_NOT_FOUND = -32601
_REQUEST_TIMEOUT = -32001

Ask = Callable[[str, Mapping[str, Json]], Awaitable[Mapping[str, Json] | None]]
Sample = Callable[[str, tuple[tuple[str, str], ...], int], Awaitable[str | None]]


class Gone(Exception):
    """The connection ended, or never came up; the message says why."""


class Unread(Gone):
    """The server, or the way to it, turned a request away before anything came of it."""


class NoAnswer(Exception):
    """The server did not answer one request in time."""


class Failed(Exception):
    """The server answered with an error, or with something that is not the protocol."""


@dataclass(slots=True)
class _Answer:
    """How a request over HTTP was answered. The SDK makes one error of all that went wrong, but
    its tasks inherit the sender's context, so this can be written down beside it."""

    status: int = 0
    reason: str = ""
    was_reached: bool = True

    @property
    def is_unread(self) -> bool:
        """401 to 403 are answers of a doorkeeper; 404 means a session that the server forgot."""
        return not self.was_reached or self.status in (401, 403, 404)

    def told(self, message: str) -> str:
        if not self.was_reached:
            return self.reason
        return f"{message} (HTTP {self.status} {self.reason})" if self.status >= 400 else message


_ANSWER: ContextVar[_Answer | None] = ContextVar("_ANSWER", default=None)


async def _note_answer(response: Any) -> None:
    answer = _ANSWER.get()
    if answer is not None:
        answer.status, answer.reason = response.status_code, response.reason_phrase
        if UNREACHED in response.headers:
            answer.was_reached, answer.reason = False, response.headers[UNREACHED]


@contextlib.contextmanager
def _answered() -> Iterator[_Answer]:
    answer = _Answer()
    token = _ANSWER.set(answer)
    try:
        yield answer
    finally:
        _ANSWER.reset(token)


@dataclass(slots=True)
class Connection:
    """Use through `open_stdio` or `open_http`. `closed` is set when it is of no more use."""

    session: ClientSession
    closed: asyncio.Event
    pipe: Pipe | None
    tools_changed: bool = False

    async def list_tools(self, timeout_s: float) -> list[dict[str, Json]]:
        """Every tool as its JSON, pages joined, at most a little over `TOOLS_MAX`."""
        found: list[dict[str, Json]] = []
        cursor: str | None = None
        for _ in range(PAGES_MAX):
            params = protocol.PaginatedRequestParams(cursor=cursor)
            request = protocol.ListToolsRequest(params=params)
            page = await self._request(request, protocol.ListToolsResult, timeout_s)
            found += [tool.model_dump(mode="json", by_alias=True) for tool in page.tools]
            cursor = page.next_cursor
            if cursor is None or len(found) > TOOLS_MAX:
                break
        return found

    async def call(self, name: str, arguments: Mapping[str, Json], patience: Patience) -> Any:
        """One tools/call; returns a `CallToolResult`.

        Raises `Unread` (nothing came of it), `Gone`, `NoAnswer`, `Failed`.
        """
        params = protocol.CallToolRequestParams(name=name, arguments=dict(arguments))
        request = protocol.CallToolRequest(params=params)
        try:
            async with patience:
                return await self._request(request, protocol.CallToolResult, None)
        except TimeoutError:
            raise NoAnswer(f"no answer in {patience.seconds:.0f} seconds") from None

    async def is_alive(self) -> bool:
        """Whether it answers a ping; marks the connection closed if not."""
        try:
            await self._request(protocol.PingRequest(), protocol.EmptyResult, PING_TIMEOUT_S)
        except (Gone, NoAnswer):
            self.closed.set()
            return False
        except Failed:
            return True
        return True

    async def _request(self, request: Any, result: Any, timeout_s: float | None) -> Any:
        if self.closed.is_set():
            raise Unread(self._why())
        with _answered() as answer:
            return await self._send(request, result, timeout_s, answer)

    async def _send(
        self, request: Any, result: Any, timeout_s: float | None, answer: _Answer
    ) -> Any:
        try:
            return await self.session.send_request(request, result, timeout_s)
        except MCPError as error:
            if answer.is_unread:
                self.closed.set()
                raise Unread(answer.told(error.message)) from None
            if self.closed.is_set() or error.code == protocol.CONNECTION_CLOSED:
                self.closed.set()
                raise Gone(self._why()) from None
            if error.code == _REQUEST_TIMEOUT:
                raise NoAnswer(f"no answer in {timeout_s or 0:.0f} seconds") from None
            raise Failed(answer.told(error.message[:1_000])) from None
        except (ValidationError, ValueError, TypeError) as error:
            raise Failed(f"the answer is not the protocol's: {str(error)[:300]}") from None

    def _why(self) -> str:
        if self.pipe is None:
            return "the connection ended"
        last = self.pipe.stderr[-1] if self.pipe.stderr else ""
        return self.pipe.ending + (f" ({last})" if last else "") or "the connection ended"


@contextlib.asynccontextmanager
async def open_stdio(launch: Launch, ask: Ask, sample: Sample) -> AsyncIterator[Connection]:
    """Start a server's program and shake hands. Raises `Gone`, `NoAnswer`, `Failed`."""
    async with (
        open_pipe(launch) as pipe,
        _session(pipe.incoming, pipe.outgoing, pipe.closed, pipe, ask, sample) as connection,
    ):
        yield connection


@contextlib.asynccontextmanager
async def open_http(
    url: str, bearer: str, door: HttpDoor, ask: Ask, sample: Sample
) -> AsyncIterator[Connection]:
    """Connect to a server over streamable HTTP, through egress."""
    async with door.client(url, bearer) as client:
        client.event_hooks = {"response": [_note_answer]}
        async with (
            streamable_http_client(url, http_client=client) as (incoming, outgoing),
            _session(incoming, outgoing, asyncio.Event(), None, ask, sample) as connection,
        ):
            yield connection


@contextlib.asynccontextmanager
async def _session(
    incoming: Any,
    outgoing: Any,
    closed: asyncio.Event,
    pipe: Pipe | None,
    ask: Ask,
    sample: Sample,
) -> AsyncIterator[Connection]:
    connection: Connection

    async def on_message(message: object) -> None:
        if isinstance(message, protocol.ToolListChangedNotification):
            connection.tools_changed = True

    async def on_elicit(context: object, params: Any) -> protocol.ElicitResult:
        if not isinstance(params, protocol.ElicitRequestFormParams):
            return protocol.ElicitResult(action="decline")
        content: Any = await ask(params.message, params.requested_schema)
        if content is None:
            return protocol.ElicitResult(action="decline")
        return protocol.ElicitResult(action="accept", content=dict(content))

    async def on_sample(context: object, params: Any) -> Any:
        text = await sample(params.system_prompt or "", _turns(params), params.max_tokens)
        if text is None:
            return protocol.ErrorData(code=-1, message="declined")
        answer = protocol.TextContent(type="text", text=text)
        return protocol.CreateMessageResult(
            role="assistant", content=answer, model="appliance", stop_reason="endTurn"
        )

    async with ClientSession(
        incoming,
        outgoing,
        sampling_callback=on_sample,
        elicitation_callback=on_elicit,
        message_handler=on_message,
        client_info=protocol.Implementation(name="appliance", version="1"),
    ) as session:
        connection = Connection(session, closed, pipe)
        try:
            with _answered() as answer:
                await session.initialize()
        except MCPError as error:
            if error.code != _METHOD_NOT_FOUND:
                why = connection._why() if closed.is_set() else answer.told(error.message)
                raise Gone(why) from None
            await session.discover()
        except (ValidationError, ValueError, RuntimeError) as error:
            raise Failed(f"the handshake is not the protocol's: {str(error)[:300]}") from None
        yield connection


def _turns(params: Any) -> tuple[tuple[str, str], ...]:
    found = []
    for message in params.messages:
        parts = message.content if isinstance(message.content, list) else [message.content]
        text = "".join(part.text for part in parts if isinstance(part, protocol.TextContent))
        found.append((str(message.role), text))
    return tuple(found)
