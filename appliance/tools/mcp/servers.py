"""All configured servers: which tools they add for an agent, and the way of one call to one.

A call of a reading or idempotent tool that loses its server is made again on the restarted one. A
call with an effect is not: nobody knows whether the server did it before it died, and nobody may
find out by doing it twice. Before such a call is sent, a mark is put on disk, so that a daemon that
dies meanwhile knows it too; a call without a mark was never sent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from appliance.config.tools import McpConfig
from appliance.egress.errand import Errand, on_errand
from appliance.tools.mcp.catalogue import SEPARATOR, RemoteTool
from appliance.tools.mcp.patience import Patience
from appliance.tools.mcp.results import content_of, text_outcome
from appliance.tools.mcp.server import McpServer, Surroundings, Unavailable
from appliance.tools.ports import server_place
from appliance.tools.types import (
    InDoubt,
    Intent,
    NotStarted,
    ToolContext,
    ToolOutcome,
    error_outcome,
)
from appliance.types import Effect, ImageBlock, Label, TextBlock, ToolSpec, highest
from appliance.wire.native import block_from_json, block_to_json

ATTEMPTS_MAX = 6
"""Of a call that may be repeated: the first, and five more over the 1.5 seconds that the back-off
of a dying server makes of them."""


class McpServers:
    """`async with`: enter takes the list of servers, exit ends those that run."""

    def __init__(
        self,
        config: Callable[[], Mapping[str, McpConfig]],
        around: Surroundings,
        calls_dir: Path,
        output_max_bytes: Callable[[], int],
    ) -> None:
        self._config = config
        self._around = around
        self._calls_dir = calls_dir
        self._output_max_bytes = output_max_bytes
        self._servers: dict[str, McpServer] = {}
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        pins = self._around.state_dir / "mcp"
        await asyncio.to_thread(pins.mkdir, 0o700, True, True)
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server in self._servers.values():
            await server.close()
        await self._group.__aexit__(None, None, None)  # what went wrong inside stays as it is

    def specs(self, names: tuple[str, ...]) -> tuple[ToolSpec, ...]:
        """Tools of these servers, as far as their accepted lists are known; what a server says of
        its tools is as sensitive as what it answers."""
        return tuple(
            replace(tool.spec, label=server.config.label)
            for name in names
            if (server := self._server(name)) is not None
            for tool in server.catalogue.tools.values()
        )

    async def learn(self, names: tuple[str, ...]) -> None:
        """Start those of these servers whose tools are not known yet. Never raises for one that
        cannot start: its tools are missing, and `report` says why."""
        unknown = [
            server
            for name in names
            if (server := self._server(name)) is not None
            and not server.catalogue.digest
            and server.state != "changed"
        ]
        await asyncio.gather(*(_start(server) for server in unknown))

    def report(self) -> list[dict[str, Any]]:
        """For people: each server, its state, its tools, what was left out and why."""
        found = []
        for name in self._config():
            server = self._server(name)
            if server is not None:
                found.append(
                    {
                        "server": name,
                        "state": server.state,
                        "problem": server.problem,
                        "tools": sorted(server.catalogue.tools),
                        "left_out": list(server.catalogue.left_out),
                    }
                )
        return found

    def accept_tools(self, name: str) -> bool:
        """A person accepts the changed tools of a server; whether there was something to."""
        server = self._server(name)
        return server is not None and server.accept_tools()

    def find(self, tool: str) -> tuple[McpServer, RemoteTool] | None:
        server = self._server(tool.partition(SEPARATOR)[0])
        remote = None if server is None else server.catalogue.tools.get(tool)
        return None if server is None or remote is None else (server, remote)

    def leaves_machine(self, tool: str) -> bool:
        """Whether calling it sends data to other machines."""
        found = self.find(tool)
        if found is None:
            return False
        config = found[0].config
        return bool(config.url or config.network or config.hosts)

    async def run(self, intent: Intent, ctx: ToolContext, key: str) -> ToolOutcome | InDoubt:
        """One call to its end; `key` names its mark."""
        found = self.find(intent.tool)
        if found is None:
            return error_outcome(intent.call_id, f"{intent.tool} is not available now.", ctx.label)
        server, tool = found
        started_s = self._around.clock.monotonic()
        outcome: ToolOutcome | InDoubt
        if intent.effect is Effect.ONCE:
            outcome = await self._once(server, tool, intent, ctx, key)
        else:
            outcome = await self._again(server, tool, intent, ctx)
        if isinstance(outcome, InDoubt):
            return outcome
        took_ms = int((self._around.clock.monotonic() - started_s) * 1000)
        return replace(outcome, duration_ms=took_ms)

    def adopt(self, intent: Intent, key: str) -> ToolOutcome | InDoubt | NotStarted:
        """What a call was that an earlier daemon intended."""
        if intent.effect is not Effect.ONCE:
            return NotStarted(intent.call_id)
        mark = self._calls_dir / f"{key}.sent"
        if not mark.exists():
            return NotStarted(intent.call_id)
        return self._kept(intent, key) or InDoubt(
            intent.call_id, "the daemon ended after the call was sent to its server"
        )

    async def _once(
        self, server: McpServer, tool: RemoteTool, intent: Intent, ctx: ToolContext, key: str
    ) -> ToolOutcome | InDoubt:
        from appliance.tools.mcp.connection import Gone, NoAnswer, Unread

        kept = self._kept(intent, key)
        if kept is not None:
            return kept
        mark = self._calls_dir / f"{key}.sent"
        reason = ""
        for _ in range(ATTEMPTS_MAX):
            try:
                connection = await server.connection()
            except Unavailable as error:
                reason = str(error)
                break
            mark.touch()
            try:
                outcome = await self._call(connection, server, tool, intent, ctx)
            except Unread as error:
                mark.unlink()
                reason = f"{server.name}: {error}"
                continue
            except (Gone, NoAnswer) as error:
                await connection.is_alive()
                return InDoubt(intent.call_id, f"{server.name}: {error}, after the call was sent")
            await asyncio.to_thread(self._keep, key, intent, outcome)
            return outcome
        label = highest(ctx.label, server.config.label)  # the reason may be in the server's words
        return error_outcome(intent.call_id, f"{reason}. The call did not run.", label)

    async def _again(
        self, server: McpServer, tool: RemoteTool, intent: Intent, ctx: ToolContext
    ) -> ToolOutcome:
        from appliance.tools.mcp.connection import Gone, NoAnswer

        reason = ""
        for _ in range(ATTEMPTS_MAX):
            try:
                connection = await server.connection()
                return await self._call(connection, server, tool, intent, ctx)
            except (Unavailable, Gone) as error:
                reason = str(error)
                if server.state == "changed":
                    break
            except NoAnswer as error:
                await connection.is_alive()
                reason = str(error)
                break
        label = highest(ctx.label, server.config.label)
        return error_outcome(intent.call_id, f"{server.name}: {reason}.", label)

    async def _call(
        self,
        connection: Any,
        server: McpServer,
        tool: RemoteTool,
        intent: Intent,
        ctx: ToolContext,
    ) -> ToolOutcome:
        from appliance.tools.mcp.connection import Failed

        timeout_s = server.config.timeout_s
        if ctx.deadline_s is not None:
            timeout_s = min(timeout_s, max(ctx.deadline_s - self._around.clock.monotonic(), 0.01))
        label = highest(ctx.label, server.config.label, await self._left_there(server, intent, ctx))
        patience = Patience(timeout_s)
        errand = Errand(ctx.label, ctx.agent, ctx.turn_id)
        try:
            async with server.calling(ctx, patience, label):
                with on_errand(errand):
                    result = await connection.call(tool.their_name, intent.arguments, patience)
        except Failed as error:
            note = f"{server.name} says: {error}"
            return text_outcome(intent, note, ctx, label, self._output_max_bytes(), is_error=True)
        return await asyncio.to_thread(
            content_of, result, intent, ctx, label, self._output_max_bytes()
        )

    async def _left_there(self, server: McpServer, intent: Intent, ctx: ToolContext) -> Label:
        """The label of what the server keeps, which it may tell anybody. A call that is more than
        reading leaves what it carries there."""
        places, place = self._around.ports.places, server_place(server.name)
        if places is None:
            return Label.PUBLIC
        if intent.effect is Effect.READ:
            return await places.of(place)
        return await places.raise_to(place, ctx.label)

    def _kept(self, intent: Intent, key: str) -> ToolOutcome | None:
        """The result a call had before the daemon died, if it came that far."""
        try:
            body = json.loads((self._calls_dir / f"{key}.answer").read_text())
        except FileNotFoundError:
            return None
        if body["call_hash"] != intent.call_hash:
            return None
        blocks = (block_from_json(block) for block in body["content"])
        content = tuple(block for block in blocks if isinstance(block, TextBlock | ImageBlock))
        return ToolOutcome(intent.call_id, content, body["is_error"], Label(body["label"]))

    def _keep(self, key: str, intent: Intent, outcome: ToolOutcome) -> None:
        body = {
            "call_hash": intent.call_hash,
            "content": [block_to_json(block) for block in outcome.content],
            "is_error": outcome.is_error,
            "label": outcome.label,
        }
        draft = self._calls_dir / f"{key}.answer.new"
        draft.write_text(json.dumps(body))
        draft.rename(self._calls_dir / f"{key}.answer")

    def _server(self, name: str) -> McpServer | None:
        """The supervisor of a configured server, made at first use; made anew after its
        section changed."""
        config = self._config().get(name)
        known = self._servers.get(name)
        if config is None:
            return None
        if known is None or known.config != config:
            if known is not None:
                self._group.create_task(known.close())
            known = McpServer(name, config, self._around, self._group)
            self._servers[name] = known
        return known


async def _start(server: McpServer) -> None:
    try:
        await server.connection()
    except Unavailable:
        return  # `server.problem` keeps it
