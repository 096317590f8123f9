"""One configured server, supervised: started when somebody needs it, restarted when it dies.

    idle ──needed──▶ starting ──▶ ready ──dies──▶ idle (back-off: 50 ms, doubling, under a second)
                        └──▶ changed: its tools are not those that were accepted; waits for a person

The connection lives in a task of its own, because the SDK's session must be opened and closed by
the same task; callers only get to use it. A failed start is remembered for its back-off, so that a
broken server costs its callers a sentence, not a start each.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.clock import Clock
from appliance.config.tools import McpConfig
from appliance.egress.errand import Errand, take_up
from appliance.egress.gate import Gate
from appliance.egress.rules import Purpose
from appliance.errors import ApplianceError
from appliance.tools import schema
from appliance.tools.mcp import pins
from appliance.tools.mcp.catalogue import Catalogue, catalogue, digest_of, sound
from appliance.tools.mcp.launch import folders_needed, resolve
from appliance.tools.mcp.patience import Asides, Patience
from appliance.tools.output import visible
from appliance.tools.ports import Ports, server_place
from appliance.tools.sandbox import bridge
from appliance.tools.sandbox.limits import UNLIMITED, Limits
from appliance.tools.sandbox.plan import Cage
from appliance.tools.sandbox.report import SandboxReport
from appliance.tools.types import ToolContext
from appliance.types import Json, Label, highest

if TYPE_CHECKING:
    from appliance.tools.mcp.connection import Connection

log = logging.getLogger(__name__)

BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 0.8
"""A server that was killed is back within a second, also after some failed starts."""
MESSAGE_MAX_CHARS = 4_000
QUESTIONS_MAX = 8
"""Questions and model requests of a server while one call runs."""


class Unavailable(Exception):
    """The server cannot be used now; the message says why. Nothing was sent to it."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every server of a daemon shares."""

    state_dir: Path
    sandbox: SandboxReport
    limits: Limits
    never: tuple[str, ...]
    ports: Ports
    clock: Clock


@dataclass(frozen=True, slots=True)
class Ongoing:
    """A call to a server that is not answered yet."""

    ctx: ToolContext
    asides: Asides


class McpServer:
    """Keeps one server. `close` ends it; its tasks run in the group given."""

    def __init__(
        self, name: str, config: McpConfig, around: Surroundings, group: asyncio.TaskGroup
    ) -> None:
        self.name = name
        self.config = config
        self.state = "idle"
        self.problem = ""
        self._around = around
        self._group = group
        self._pins = around.state_dir / "mcp"
        self._starting = asyncio.Lock()
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._failures = 0
        self._not_before_s = 0.0
        self._offered: pins.Pin | None = None
        self._calls: list[Ongoing] = []
        self._questions = 0
        self._told = Label.PUBLIC
        """The most sensitive of what the server was ever told: what it sends may hold it."""
        pin = pins.load(self._pins, name)
        self.catalogue = self._catalogue(pin) if pin is not None else Catalogue({}, "")

    async def connection(self) -> Connection:
        """A usable connection, started if need be. Raises `Unavailable`."""
        async with self._starting:
            if self._connection is not None and self._connection.tools_changed:
                await self._list_again(self._connection)
            if self._connection is None or self._connection.closed.is_set():
                if self._task is not None:
                    await asyncio.wait([self._task])
                await self._start()
            assert self._connection is not None
            return self._connection

    def accept_tools(self) -> bool:
        """Accept the list a changed server offers now. Returns whether there was one."""
        if self._offered is None:
            return False
        pins.save(self._pins, self.name, self._offered)
        self.catalogue = self._catalogue(self._offered)
        self._offered, self.state, self.problem = None, "idle", ""
        return True

    async def close(self) -> None:
        self._stop.set()
        if self._task is not None:
            await asyncio.wait([self._task])

    @contextlib.asynccontextmanager
    async def calling(
        self, ctx: ToolContext, patience: Patience, label: Label
    ) -> AsyncIterator[None]:
        """While a call runs, the server may ask on its behalf; what it asked ends with the call.
        `label` is that of all the server may say in it: what was told before is in its mind."""
        call = Ongoing(replace(ctx, label=highest(ctx.label, label)), Asides(patience))
        self._told = highest(self._told, ctx.label)
        self._calls.append(call)
        try:
            yield
        finally:
            self._calls.remove(call)
            if not self._calls:
                self._questions = 0
            await call.asides.end()

    async def _list_again(self, connection: Connection) -> None:
        """The server said that its tools changed: see whether it is so. Raises `Unavailable`."""
        from appliance.tools.mcp.connection import Failed, Gone, NoAnswer

        connection.tools_changed = False
        try:
            listing = await connection.list_tools(self.config.start_timeout_s)
            await asyncio.to_thread(self._check, listing)
        except Unavailable:
            self._stop.set()
            raise
        except (Failed, Gone, NoAnswer):
            connection.closed.set()

    async def _start(self) -> None:
        if self.state == "changed":
            raise Unavailable(self.problem)
        wait_s = self._not_before_s - self._around.clock.monotonic()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        self.state, self.problem = "starting", ""
        self._stop = asyncio.Event()
        opened: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self._task = self._group.create_task(self._keep(opened, self._stop))
        try:
            self._connection = await asyncio.wait_for(
                asyncio.shield(opened), self.config.start_timeout_s
            )
        except asyncio.CancelledError:
            self._stop.set()
            raise
        except TimeoutError:
            self._task.cancel()
            self._failed(f"it did not start in {self.config.start_timeout_s:.0f} seconds")
        except Exception as error:  # the wall of an instance: why does not matter to its callers
            self._failed(_reason(error))
        else:
            self.state, self._failures = "ready", 0

    def _failed(self, reason: str) -> None:
        self._failures += 1
        pause_s = min(BACKOFF_FIRST_S * 2 ** (self._failures - 1), BACKOFF_MAX_S)
        self._not_before_s = self._around.clock.monotonic() + pause_s
        self._connection = None
        if self.state != "changed":
            self.state, self.problem = "failed", f"{self.name} is not available: {reason}"
        raise Unavailable(self.problem)

    async def _keep(self, opened: asyncio.Future[Connection], stop: asyncio.Event) -> None:
        """Open, list, hand out, and hold until it closes or is stopped."""
        try:
            async with self._open() as connection:
                listing = await connection.list_tools(self.config.start_timeout_s)
                await asyncio.to_thread(self._check, listing)
                opened.set_result(connection)
                await _first(connection.closed, stop)
                connection.closed.set()
        except asyncio.CancelledError:
            if not opened.done():
                opened.cancel()
            raise
        except Exception as error:  # the wall of an instance
            if not opened.done():
                opened.set_exception(error)
        finally:
            self._connection = None
            if self.state == "ready":
                self.state = "idle"
                self._not_before_s = self._around.clock.monotonic() + BACKOFF_FIRST_S

    def _check(self, listing: list[dict[str, Json]]) -> None:
        """Compare with the accepted list, or accept the first. Raises `Unavailable`."""
        kept, left_out = sound(listing)
        offered = pins.Pin(digest_of(listing), tuple(kept))
        accepted = pins.load(self._pins, self.name)
        if accepted is None:
            pins.save(self._pins, self.name, offered)
        elif accepted.digest != offered.digest:
            self._offered = offered
            self.catalogue = Catalogue({}, accepted.digest)
            self.state = "changed"
            self.problem = (
                f"the tools of {self.name} have changed since they were accepted; "
                "nothing of it runs until a person accepts the new list"
            )
            raise Unavailable(self.problem)
        fresh = self._catalogue(offered)
        self.catalogue = replace(fresh, left_out=(*left_out, *fresh.left_out))

    def _catalogue(self, pin: pins.Pin) -> Catalogue:
        return catalogue(self.name, pin.listing, pin.digest, self.config.tools, self.config.effects)

    def _open(self) -> AbstractAsyncContextManager[Connection]:
        from appliance.tools.mcp import connection

        if self.config.url:
            if self._around.ports.http is None:
                raise Unavailable(f"{self.name} is at a URL, and there is no way out")
            bearer = self._secret(self.config.key_env) if self.config.key_env else ""
            return connection.open_http(
                self.config.url, bearer, self._around.ports.http, self._ask, self._sample
            )
        return self._open_program()

    @contextlib.asynccontextmanager
    async def _open_program(self) -> AsyncIterator[Connection]:
        from appliance.tools.mcp import connection, stdio

        argv = resolve(self.config.command)
        home = self._around.state_dir / "mcp" / self.name
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        gate = self._gate()
        launch = stdio.Launch(
            name=self.name,
            argv=tuple(argv),
            cage=Cage(
                str(home),
                extra_read=folders_needed(argv),
                extra_write=self.config.paths,
                never=self._around.never,
                network=self.config.network,
                gate=() if gate is None else (str(gate.path), f"mcp-{self.name}"),
            ),
            environment={**self._environment(home), **(bridge.environment() if gate else {})},
            limits=self._around.limits._replace(cpu_s=UNLIMITED),
            sandbox=self._around.sandbox,
            is_caged=self.config.sandbox,
        )
        async with contextlib.AsyncExitStack() as held:
            if gate is not None:
                if self._around.ports.places is not None:
                    kept = await self._around.ports.places.of(server_place(self.name))
                    self._told = highest(self._told, kept)
                purpose = Purpose("program", self.name)
                await held.enter_async_context(
                    gate.admitting(f"mcp-{self.name}", purpose, lambda: Errand(self._told))
                )
            yield await held.enter_async_context(
                connection.open_stdio(launch, self._ask, self._sample)
            )

    def _gate(self) -> Gate | None:
        """The way to its hosts, if it may have any. Raises `Unavailable` where it needs one and
        there is none to be had."""
        if not self.config.hosts or self._around.sandbox.mode == "none":
            return None
        if self._around.ports.gate is None or self._around.sandbox.mode != "bubblewrap":
            raise Unavailable(
                f"{self.name} needs hosts, and only bubblewrap can give it these alone"
            )
        return self._around.ports.gate

    def _environment(self, home: Path) -> dict[str, str]:
        told = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        secrets = {name: self._secret(name) for name in self.config.secrets}
        return {**told, **self.config.environment, **secrets}

    def _secret(self, name: str) -> str:
        secrets = self._around.ports.secrets
        value = secrets.get(name) if secrets is not None else None
        if value is None:
            raise Unavailable(f"{self.name} needs {name}, which is not set")
        return value

    async def _ask(self, message: str, wanted: Mapping[str, Json]) -> Mapping[str, Json] | None:
        """A question of the server, put to a person if a call of ours is what it is about."""
        call, elicitor = self._caller(), self._around.ports.elicitor
        if call is None or elicitor is None or schema.schema_problem(dict(wanted)):
            return None
        asked = visible(message, MESSAGE_MAX_CHARS)
        answer = await call.asides.run(elicitor.elicit(self.name, asked, wanted, call.ctx))
        if answer is None or schema.problems(wanted, dict(answer)):
            return None
        return answer

    async def _sample(
        self, system: str, messages: tuple[tuple[str, str], ...], max_tokens: int
    ) -> str | None:
        call, sampler = self._caller(), self._around.ports.sampler
        if call is None or sampler is None or not messages:
            return None
        try:
            return await call.asides.run(
                sampler.sample(self.name, system, messages, max_tokens, call.ctx)
            )
        except ApplianceError as error:
            log.info("%s asked for a model in vain: %s", self.name, error)
            return None

    def _caller(self) -> Ongoing | None:
        """On whose behalf a server asks: the oldest running call, at the highest label of all,
        since the protocol does not say which of several it means. None if it has no business.
        What we answer goes out on that call's errand; a refusal says nothing of anybody."""
        self._questions += 1
        if not self._calls or self._questions > QUESTIONS_MAX:
            take_up(Errand(Label.PUBLIC))
            return None
        label = highest(self.config.label, *(call.ctx.label for call in self._calls))
        first = self._calls[0]
        take_up(Errand(label, first.ctx.agent, first.ctx.turn_id))
        return Ongoing(replace(first.ctx, label=label), first.asides)


async def _first(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _reason(error: BaseException) -> str:
    """The first plain error inside a group of them."""
    inner: Any = error
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    return str(inner)[:500] or type(inner).__name__
