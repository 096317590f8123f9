"""The toolbox: every tool there is, which agent may use which, and the way of one call.

    prepare   name, permission, arguments → an `Intent`, or an error told to the model
    decide    rules, standing answers → allow, ask, deny
    run       carry it out · adopt: take over what an earlier daemon began · cancel: end it

`turns` journals between these; nothing here writes a journal.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance.clock import Clock
from appliance.config.schema import Config
from appliance.tools import approvals, labels, schema
from appliance.tools.builtin import asking, filing, shell
from appliance.tools.builtin.base import BuiltIn, Program
from appliance.tools.confine import Outside
from appliance.tools.detached import DetachedCalls, Starter
from appliance.tools.executor import Executor, call_limits, environment, runner_key
from appliance.tools.mcp.server import Surroundings
from appliance.tools.mcp.servers import McpServers
from appliance.tools.output import visible
from appliance.tools.ports import Ports
from appliance.tools.sandbox.report import SandboxReport, probe
from appliance.tools.types import (
    Deny,
    Grant,
    InDoubt,
    Intent,
    NotStarted,
    ToolContext,
    ToolOutcome,
    Verdict,
    call_hash,
    error_outcome,
)
from appliance.types import Label, ToolCallBlock, ToolSpec, highest

BUILT_IN: dict[str, BuiltIn] = {
    tool.spec.name: tool for tool in (*filing.TOOLS, *shell.TOOLS, *asking.TOOLS)
}
SUMMARY_MAX_CHARS = 20_000
NO_PORTS = Ports()


class Toolbox:
    """All tools of one daemon. `async with`: enter probes the sandbox and takes up the MCP
    servers, exit ends the servers and leaves detached runners running."""

    def __init__(
        self,
        config: Callable[[], Config],
        state_dir: Path,
        clock: Clock,
        ports: Ports = NO_PORTS,
        never: tuple[Path, ...] = (),
    ) -> None:
        """`never`: folders no tool may see, besides `state_dir` (config, socket, models)."""
        self._config = config
        self._state_dir = state_dir
        self._calls_dir = state_dir / "calls"
        self._clock = clock
        self._ports = ports
        self._never = tuple(str(path) for path in (state_dir, *never))
        self._sandbox: SandboxReport | None = None
        self._executor: Executor | None = None
        self._servers: McpServers | None = None
        self._starter: Starter | None = None

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._calls_dir.mkdir, 0o700, True, True)
        self._sandbox = await probe(self._config().tools.sandbox)
        self._starter = Starter(self._calls_dir)
        await self._starter.__aenter__()
        self._executor = Executor(
            config=lambda: self._config().tools,
            calls=DetachedCalls(self._calls_dir, self._sandbox, self._starter),
            sandbox=self._sandbox,
            ports=self._ports,
            clock=self._clock,
            never=self._never,
        )
        around = Surroundings(
            self._state_dir,
            self._sandbox,
            call_limits(self._config().tools),
            self._never,
            self._ports,
            self._clock,
        )
        self._servers = McpServers(
            lambda: self._config().mcp,
            around,
            self._calls_dir,
            lambda: self._config().tools.output_max_bytes,
        )
        await self._servers.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._servers is not None
        await self._servers.__aexit__(kind, error, trace)
        assert self._starter is not None
        await self._starter.__aexit__()
        self._executor = None

    @property
    def sandbox(self) -> SandboxReport:
        assert self._sandbox is not None, "enter the toolbox first"
        return self._sandbox

    @property
    def servers(self) -> McpServers:
        """The MCP servers: `report()` for people, `accept_tools(name)` after a change."""
        assert self._servers is not None, "enter the toolbox first"
        return self._servers

    async def learn(self, agent: str) -> None:
        """Start those MCP servers of an agent whose tools are not known yet; before `specs`."""
        await self.servers.learn(self._config().agents[agent].mcp)

    def specs(self, agent: str) -> tuple[ToolSpec, ...]:
        """What an agent may use: built-in tools as its config names them, then those of its MCP
        servers, as `server__tool`."""
        config = self._config()
        own = [
            BUILT_IN[name].spec
            for name in config.agents[agent].tools
            if name != "fetch" or config.tools.fetch_enabled
        ]
        hosts = config.agents[agent].shell_hosts
        if hosts and self._ports.gate is not None and self.sandbox.mode == "bubblewrap":
            reaching = shell.spec_reaching(hosts)
            own = [reaching if spec.name == reaching.name else spec for spec in own]
        return (*own, *self.servers.specs(config.agents[agent].mcp))

    def prepare(self, call: ToolCallBlock, ctx: ToolContext) -> Intent | ToolOutcome:
        """The call as an `Intent`, or an error for the model. The same call prepared again, also
        after a restart, gives the same `call_hash`."""
        allowed = {spec.name: spec for spec in self.specs(ctx.agent)}
        spec = allowed.get(call.name)
        if spec is None:
            names = ", ".join(allowed) or "none"
            return error_outcome(
                call.call_id,
                f"There is no tool {call.name!r} for you; there are: {names}.",
                ctx.label,
            )
        wrong = schema.problems(spec.input_schema, call.arguments)
        wrong = wrong or self._wrong_for_agent(call, ctx)
        if wrong:
            wanted = json.dumps(dict(spec.input_schema.get("properties", {})))[:2_000]
            return error_outcome(
                call.call_id,
                f"The arguments of {call.name} are wrong: {'; '.join(wrong)}. It takes {wanted}.",
                ctx.label,
            )
        ctx.workspace.mkdir(mode=0o700, parents=True, exist_ok=True)
        tool = BUILT_IN.get(call.name)
        if tool is None:
            told: dict[str, str] = {}
            summary = f"{call.name}\n{json.dumps(dict(call.arguments), indent=1)}"
        else:
            told = environment(ctx.workspace, self.sandbox)
            try:
                work = tool.work(call.call_id, call.arguments, ctx)
                if isinstance(work, Program) and work.takes_hosts and ctx.hosts:
                    told["hosts"] = " ".join(ctx.hosts)
                summary = tool.summary(call.arguments, ctx)
            except Outside as error:
                return error_outcome(call.call_id, f"Not allowed: {error}.", ctx.label)
        return Intent(
            call_id=call.call_id,
            tool=call.name,
            arguments=call.arguments,
            effect=spec.effect,
            summary=visible(summary, SUMMARY_MAX_CHARS),
            call_hash=call_hash(call.name, call.arguments, ctx.workspace, told),
        )

    def decide(self, intent: Intent, ctx: ToolContext) -> Verdict:
        """Allow, ask a person, or deny, by the agent's rules and the grants in `ctx`."""
        tool = BUILT_IN.get(intent.tool)
        leaves = self.servers.leaves_machine(intent.tool) if tool is None else tool.leaves_machine
        if leaves and ctx.label is Label.PRIVATE:
            return Deny("private data is in play, and this tool sends data away")
        rules = self._config().agents[ctx.agent].approvals
        return approvals.evaluate(rules, ctx.grants, intent, ctx.agent, leaves)

    def grant_from(self, intent: Intent, ctx: ToolContext, allow: bool) -> Grant:
        """The standing answer that allow_always or reject_always to this call means."""
        return approvals.grant_from(intent, ctx.agent, allow)

    async def run(self, intent: Intent, ctx: ToolContext) -> ToolOutcome | InDoubt:
        """Carry a call out. If an earlier runner of it still counts, its result is taken; only
        when that runner died is it started anew: run an in-doubt call only on a decision."""
        assert self._executor is not None
        tool = BUILT_IN.get(intent.tool)
        if tool is None:
            key = runner_key(intent.call_id, ctx)
            return self._ruled(await self.servers.run(intent, ctx, key), intent)
        return await self._executor.run(tool, intent, ctx)

    async def adopt(self, intent: Intent, ctx: ToolContext) -> ToolOutcome | InDoubt | NotStarted:
        """What became of a call that an earlier daemon intended; waits while it runs."""
        assert self._executor is not None
        tool = BUILT_IN.get(intent.tool)
        if tool is None:
            found = self.servers.adopt(intent, runner_key(intent.call_id, ctx))
            return found if isinstance(found, NotStarted) else self._ruled(found, intent)
        return await self._executor.adopt(tool, intent, ctx)

    def _ruled(self, outcome: ToolOutcome | InDoubt, intent: Intent) -> ToolOutcome | InDoubt:
        """At least as sensitive as `[tools] labels` says of the tool."""
        least = labels.of_tool(self._config().tools.labels, intent.tool)
        if isinstance(outcome, InDoubt) or least.rank <= outcome.label.rank:
            return outcome
        content = tuple(
            replace(block, label=highest(block.label, least)) for block in outcome.content
        )
        return replace(outcome, content=content, label=least)

    def cancel(self, call_id: str, ctx: ToolContext) -> bool:
        """End a call's runner. `run` or `adopt` then return its outcome, which says so."""
        assert self._executor is not None
        return self._executor.calls.cancel(runner_key(call_id, ctx))

    def forget(self, call_id: str, ctx: ToolContext) -> None:
        """Drop what a runner left of a call; only once its result is on disk in the journal."""
        assert self._executor is not None
        self._executor.calls.forget(runner_key(call_id, ctx))

    def _wrong_for_agent(self, call: ToolCallBlock, ctx: ToolContext) -> list[str]:
        if call.name != "ask_agent":
            return []
        others = self._config().agents[ctx.agent].delegates_to
        if call.arguments["agent"] in others:
            return []
        return [f"agent: you may ask {', '.join(others) or 'nobody'}"]
