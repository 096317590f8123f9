"""The tool that runs a command line, in the sandbox and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from appliance.tools.builtin.base import Program, Work, object_schema, text
from appliance.tools.types import ToolContext
from appliance.types import Effect, Json, ToolSpec

COMMAND_MAX_CHARS = 32_768


@dataclass(frozen=True, slots=True)
class Shell:
    leaves_machine = False
    spec = ToolSpec(
        "shell",
        "Run a shell command in the workspace. It has no network and sees no other files. "
        "Its output and exit code come back; programs it leaves running are ended.",
        object_schema(("command",), command=text("The command line.", COMMAND_MAX_CHARS)),
        Effect.ONCE,
    )

    def summary(self, arguments: Mapping[str, Json], ctx: ToolContext) -> str:
        reach = f"\n(it may reach {', '.join(ctx.hosts)})" if ctx.hosts else ""
        return f"$ {arguments['command']}{reach}"

    def work(self, call_id: str, arguments: Mapping[str, Json], ctx: ToolContext) -> Work:
        return Program(("/bin/sh", "-c", arguments["command"]), takes_hosts=True)


def spec_reaching(hosts: Sequence[str]) -> ToolSpec:
    """The same tool for an agent to whose shell some hosts are open."""
    told = Shell.spec.description.replace(
        "It has no network and",
        f"Of the network it reaches {', '.join(hosts)}, through the proxy that its environment "
        "names, and nothing else. It",
    )
    return replace(Shell.spec, description=told)


TOOLS = (Shell(),)
