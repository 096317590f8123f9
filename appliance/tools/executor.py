"""Carries out the work of a built-in tool, and turns what came back into an outcome.

The one place where a built-in call has an effect. Three ways, by the kind of work: a thread of the
daemon for bounded reading, a detached runner for programs and file changes, a port for what other
rooms do.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.clock import Clock
from appliance.config.tools import ToolsConfig
from appliance.egress.errand import Errand
from appliance.egress.gate import Permit
from appliance.egress.rules import Purpose
from appliance.errors import ApplianceError
from appliance.tools import files, labels, output
from appliance.tools.builtin.base import (
    BuiltIn,
    ChangeFiles,
    Program,
    ReadFiles,
    Reply,
    Request,
    Work,
)
from appliance.tools.confine import Outside, Workspace
from appliance.tools.detached import DetachedCalls, Died, Done, Job, Never
from appliance.tools.ports import Ports, workspace_place
from appliance.tools.sandbox import bridge
from appliance.tools.sandbox.limits import Limits
from appliance.tools.sandbox.plan import Cage
from appliance.tools.sandbox.report import SandboxReport
from appliance.tools.types import (
    InDoubt,
    Intent,
    NotStarted,
    ToolContext,
    ToolOutcome,
    error_outcome,
)
from appliance.types import Effect, Label, TextBlock, highest

REQUEST_MAX_S = 86_400.0
"""Another agent's turn has limits of its own; this only ends what nobody waits for any more."""

_ENDINGS = {
    "timeout": "It took longer than {timeout_s:.0f} seconds and was ended.",
    "cancelled": "It was cancelled.",
    "memory": "It used more memory than one call may ({memory_bytes} bytes) and was ended.",
    "processes": "It started more processes than one call may ({processes}) and was ended.",
    "disk": "It wrote more than one call may ({file_bytes} bytes) and was ended.",
    "output": "It wrote output without end and was ended.",
}


@dataclass(frozen=True, slots=True)
class Executor:
    """Built-in work on one machine. `config` is asked each time, so a reload takes effect."""

    config: Callable[[], ToolsConfig]
    calls: DetachedCalls
    sandbox: SandboxReport
    ports: Ports
    clock: Clock
    never: tuple[str, ...]
    """Folders no tool may see: the daemon's state, its configuration, its socket."""

    async def run(self, tool: BuiltIn, intent: Intent, ctx: ToolContext) -> ToolOutcome | InDoubt:
        """One call to its end. Cancelling leaves a detached runner running."""
        work = tool.work(intent.call_id, intent.arguments, ctx)
        ctx = await self._labelled(work, intent, ctx)
        started_s = self.clock.monotonic()
        match work:
            case ReadFiles():
                outcome = await asyncio.to_thread(self._read, work, intent, ctx)
            case Request():
                outcome = await self._request(work, intent, ctx)
            case ChangeFiles() | Program():
                if isinstance(work, Program) and not self.sandbox.can_run_programs:
                    why = "; ".join(self.sandbox.reasons)
                    return error_outcome(intent.call_id, f"No program can be started: {why}.")
                async with self._way_out(work, intent, ctx) as permit:
                    fate = await self.calls.run(self._job(work, intent, ctx))
                return await self._settle(work, fate, intent, ctx, permit)
        return replace(outcome, duration_ms=int((self.clock.monotonic() - started_s) * 1000))

    async def adopt(
        self, tool: BuiltIn, intent: Intent, ctx: ToolContext
    ) -> ToolOutcome | InDoubt | NotStarted:
        """What became of a call that an earlier daemon intended; waits while it runs."""
        work = tool.work(intent.call_id, intent.arguments, ctx)
        if isinstance(work, ReadFiles | Request) or intent.effect is Effect.READ:
            return NotStarted(intent.call_id)
        ctx = await self._labelled(work, intent, ctx)
        async with self._way_out(work, intent, ctx) as permit:
            fate = await self.calls.adopt(runner_key(intent.call_id, ctx))
        if isinstance(fate, Never):
            return NotStarted(intent.call_id)
        return await self._settle(work, fate, intent, ctx, permit)

    async def _labelled(self, work: Work, intent: Intent, ctx: ToolContext) -> ToolContext:
        """The context at the label of what the call may touch. A process may also carry what it
        reads to another file, so the workspace is told before it starts."""
        rules = self.config().labels
        if not rules:
            return ctx
        runs_shell = isinstance(work, Program) and work.read is None
        label = highest(
            ctx.label,
            await asyncio.to_thread(labels.touched, rules, intent, ctx.workspace, runs_shell),
        )
        if runs_shell and label is not ctx.label and self.ports.places is not None:
            await self.ports.places.raise_to(workspace_place(ctx.workspace.name), label)
        return replace(ctx, label=label)

    @asynccontextmanager
    async def _way_out(
        self, work: ChangeFiles | Program, intent: Intent, ctx: ToolContext
    ) -> AsyncIterator[Permit | None]:
        """While inside, the call's process reaches the hosts of its agent. A daemon that comes
        back opens the way again for a call that went on without it."""
        if self.ports.gate is None or not self._reaches_out(work, ctx):
            yield None
            return
        errand = Errand(ctx.label, ctx.agent, ctx.turn_id)
        purpose = Purpose("shell", ctx.agent)
        key = runner_key(intent.call_id, ctx)
        async with self.ports.gate.admitting(key, purpose, lambda: errand) as permit:
            yield permit

    def _reaches_out(self, work: ChangeFiles | Program, ctx: ToolContext) -> bool:
        """Only a process with a network of its own can be given one way out of it and no other."""
        return (
            isinstance(work, Program)
            and work.takes_hosts
            and bool(ctx.hosts)
            and self.ports.gate is not None
            and self.sandbox.mode == "bubblewrap"
        )

    def _read(self, work: ReadFiles, intent: Intent, ctx: ToolContext) -> ToolOutcome:
        policy = ctx.policy
        try:
            with Workspace(str(ctx.workspace), policy.read_only, policy.hidden) as workspace:
                found = getattr(files, work.function)(workspace, **work.arguments)
        except (files.FileProblem, Outside, OSError) as problem:
            return error_outcome(intent.call_id, str(problem), ctx.label)
        data = found if isinstance(found, bytes) else found.encode("utf-8", "replace")
        shown = output.show(data, self.config().output_max_bytes)
        text = shown.text
        if shown.is_cut and not shown.is_binary:
            text += "\nRead the part left out with first_line and lines, or name a deeper folder."
        label = ctx.label
        if intent.tool == "list_files":
            named = labels.of_names(self.config().labels, data.decode("utf-8", "replace"))
            label = highest(label, named)
        return _outcome(intent, text, label, is_cut=shown.is_cut)

    async def _request(self, work: Request, intent: Intent, ctx: ToolContext) -> ToolOutcome:
        left_s = REQUEST_MAX_S
        if ctx.deadline_s is not None:
            left_s = ctx.deadline_s - self.clock.monotonic()
        if intent.effect is Effect.READ:
            left_s = min(left_s, self.config().timeout_s)
        try:
            async with asyncio.timeout(max(left_s, 0)):
                reply = await work.ask(self.ports, left_s)
        except TimeoutError:
            reply = Reply(b"It took too long and was given up.", Label.PUBLIC, is_error=True)
        except ApplianceError as error:
            reply = Reply(f"{error.message} {error.hint}".encode(), Label.PUBLIC, is_error=True)
        label = highest(ctx.label, reply.label)
        size = len(reply.data)
        outcome = await self._shown(intent, ctx, reply.data, size, label, reply.is_error)
        return replace(outcome, waited_ms=reply.waited_ms, spent_micro_usd=reply.spent_micro_usd)

    def _job(self, work: ChangeFiles | Program, intent: Intent, ctx: ToolContext) -> Job:
        config = self.config()
        timeout_s = config.timeout_s
        if ctx.deadline_s is not None:
            timeout_s = min(timeout_s, max(ctx.deadline_s - self.clock.monotonic(), 0.0))
        policy = ctx.policy
        is_function = isinstance(work, ChangeFiles)
        key = runner_key(intent.call_id, ctx)
        told = environment(ctx.workspace, self.sandbox)
        gate: tuple[str, ...] = ()
        if self.ports.gate is not None and self._reaches_out(work, ctx):
            told |= bridge.environment()
            gate = (str(self.ports.gate.path), key)
        return Job(
            call_id=key,
            call_hash=intent.call_hash,
            cage=Cage(
                str(ctx.workspace),
                never=self.never,
                read_only=policy.read_only,
                hidden=policy.hidden,
                gate=gate,
            ),
            limits=call_limits(config),
            timeout_s=timeout_s,
            environment=told,
            argv=() if isinstance(work, ChangeFiles) else work.argv,
            function={"name": work.function, "arguments": dict(work.arguments)}
            if is_function and isinstance(work, ChangeFiles)
            else None,
        )

    async def _settle(
        self,
        work: ChangeFiles | Program,
        fate: Done | Never | Died,
        intent: Intent,
        ctx: ToolContext,
        permit: Permit | None,
    ) -> ToolOutcome | InDoubt:
        if isinstance(fate, Never | Died):
            probe = await asyncio.to_thread(_probe_edit, intent, ctx)
            return InDoubt(intent.call_id, "its runner died before it could report", probe)
        if fate.call_hash != intent.call_hash:
            return InDoubt(intent.call_id, "what its runner carried out was another call", None)
        data, is_error = fate.output, bool(fate.exit_code) or bool(fate.ended_by)
        if isinstance(work, Program) and work.read is not None:
            data, is_error = work.read(fate)
        notes = self._notes(work, fate)
        if permit is not None:
            notes += [f"(the network was refused: {reason})" for reason in permit.refusals]
        is_error = is_error or bool(fate.problem)
        label = ctx.label
        if intent.tool == "search_files":
            rules = self.config().labels
            known = await asyncio.to_thread(labels.found_in, rules, data, ctx.workspace)
            label = highest(label, known)
        outcome = await self._shown(
            intent, ctx, data, max(fate.output_bytes, len(data)), label, is_error, notes
        )
        return replace(outcome, duration_ms=fate.duration_ms)

    def _notes(self, work: ChangeFiles | Program, done: Done) -> list[str]:
        config = self.config()
        bounds = {**call_limits(config)._asdict(), "timeout_s": config.timeout_s}
        notes = [done.problem] if done.problem else []
        if done.ended_by:
            notes.append(_ENDINGS[done.ended_by].format(**bounds))
        elif isinstance(work, Program) and work.read is None and done.exit_code:
            notes.append(f"(exit code {done.exit_code})")
        return notes

    async def _shown(
        self,
        intent: Intent,
        ctx: ToolContext,
        data: bytes,
        total_bytes: int,
        label: Label,
        is_error: bool,
        notes: list[str] | None = None,
    ) -> ToolOutcome:
        shown = output.show(data, self.config().output_max_bytes, total_bytes)
        lines = [shown.text] if shown.text else []
        kept = None
        if shown.is_cut:
            kept = await asyncio.to_thread(_keep, intent.call_id, data, ctx)
            lines.append(f"The whole output is in {kept}." if kept else "It could not be kept.")
        text = "\n".join([*lines, *(notes or [])])
        return _outcome(intent, text or "(no output)", label, is_error, shown.is_cut, kept)


def call_limits(config: ToolsConfig) -> Limits:
    """CPU seconds: as many as every core could use in the time, were the call busy throughout."""
    return Limits(
        memory_bytes=config.memory_max_bytes,
        processes=config.processes_max,
        file_bytes=config.disk_max_bytes,
        cpu_s=int(config.timeout_s) + 1,
    )


def environment(workspace: Path, sandbox: SandboxReport) -> dict[str, str]:
    """All a tool's process is told. Where `/tmp` is not its own, the workspace stands in."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(workspace),
        "TMPDIR": "/tmp" if sandbox.mode == "bubblewrap" else str(workspace),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
    }


def runner_key(call_id: str, ctx: ToolContext) -> str:
    """The name of a call's files. Raises `ValueError` for ids that are not ours."""
    key = f"{ctx.turn_id}-{call_id}"
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,200}", key):
        raise ValueError(f"{key!r} cannot name a call")
    return key


def _outcome(
    intent: Intent,
    text: str,
    label: Label,
    is_error: bool = False,
    is_cut: bool = False,
    kept: str | None = None,
) -> ToolOutcome:
    return ToolOutcome(intent.call_id, (TextBlock(text, label),), is_error, label, is_cut, kept)


def _keep(call_id: str, data: bytes, ctx: ToolContext) -> str | None:
    try:
        with Workspace(str(ctx.workspace)) as workspace:
            return files.keep_output(workspace, call_id, data)
    except (files.FileProblem, Outside, OSError):
        return None  # the workspace is full or its folder is in the way; the caller says so


def _probe_edit(intent: Intent, ctx: ToolContext) -> str | None:
    """What the file of an interrupted edit shows; None where looking tells nothing."""
    if intent.tool != "edit_file":
        return None
    old, new = str(intent.arguments["old"]), str(intent.arguments["new"])
    try:
        with Workspace(str(ctx.workspace)) as workspace:
            text = files.read_file(workspace, str(intent.arguments["path"])).decode()
    except (files.FileProblem, UnicodeDecodeError, OSError):
        return None
    if new in text and (old not in text or old in new):
        return "the file holds the new text: the edit seems to have been made"
    if old in text:
        return "the file holds the old text: the edit seems not to have been made"
    return None
