"""Whether a call may run: rules of the agent, standing answers of people, and a default.

Pure. In this order, the first that speaks decides:

1. a standing refusal (`reject_always`), because a person said no;
2. the agent's rules in config.toml, first fit; where one says `ask`, a standing permission
   (`allow_always`) answers instead;
3. a standing permission;
4. reading is allowed, everything else is asked.

Patterns match text, and a shell command is text that a shell takes apart again: `git *` must not
allow `git status; curl …`. So a rule that *allows* never lets a wildcard stand for characters that
join commands, and a rule that asks or denies is tried on every part of a joined command, with its
quotes, doubled blanks and assignments before it taken away. (This holds for every tool's arguments:
one that is not a shell may start one.) What then runs is bound by `call_hash`: an answer holds for
exactly the call that was shown.

A rule that denies a shell's text is a reminder, not a fence: `git push*` does not see
`git -C . push`, a script, or another program that does the same. Text cannot say what a program
will do. So allow by name what may run, leave the rest to be asked, and keep a deed out of reach by
what the sandbox does not give: hosts, paths.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from appliance.config.agents import ApprovalRule, Decision
from appliance.tools.types import Allow, Ask, Deny, Grant, Intent, Verdict
from appliance.types import Effect, Json

_JOINERS = r";&|<>$`\\\n\r(){}"
_QUOTES = re.compile(r"\\\n|[\"'\\]")
_BEFORE = re.compile(
    r"^(?:(?:\w+=\S*|env|exec|command|nohup|time|then|do|else|!|(?:ba|da)?sh -\w*c) +)+"
)
"""What may stand before a command in the same part of a line."""
_EXACT_TOOLS = frozenset({"shell", "fetch"})
"""Tools whose standing permission holds for the very same arguments only: for them, the
arguments are the deed."""


def evaluate(
    rules: Sequence[ApprovalRule],
    grants: Sequence[Grant],
    intent: Intent,
    agent: str,
    leaves_machine: bool = False,
) -> Verdict:
    """The verdict on one call of one agent. `leaves_machine` tools are never read for free."""
    mine = [grant for grant in grants if grant.agent == agent and _grant_fits(grant, intent)]
    if any(not grant.allow for grant in mine):
        return Deny("a person said that this may never run")
    rule = next((rule for rule in rules if _rule_fits(rule, intent)), None)
    if rule is not None and rule.decision is Decision.DENY:
        return Deny(f"agent {agent} may not call {intent.tool} like this")
    if rule is not None and rule.decision is Decision.ALLOW:
        return Allow("a rule of the agent allows it")
    if mine:
        return Allow("a person allowed it for good")
    if rule is None and intent.effect is Effect.READ and not leaves_machine:
        return Allow("it only reads")
    return Ask(f"{agent} wants to run {intent.tool}")


def grant_from(intent: Intent, agent: str, allow: bool) -> Grant:
    """The standing answer that `allow_always` or `reject_always` to this call means."""
    arguments: Mapping[str, str] = {}
    if intent.tool in _EXACT_TOOLS:
        arguments = {name: _literal(_text(value)) for name, value in intent.arguments.items()}
    return Grant(agent, intent.tool, allow, arguments)


def _grant_fits(grant: Grant, intent: Intent) -> bool:
    return grant.tool == intent.tool and all(
        name in intent.arguments and fnmatchcase(_text(intent.arguments[name]), pattern)
        for name, pattern in grant.arguments.items()
    )


def _rule_fits(rule: ApprovalRule, intent: Intent) -> bool:
    if not fnmatchcase(intent.tool, rule.tool):
        return False
    return all(
        name in intent.arguments and _argument_fits(rule, _text(intent.arguments[name]), pattern)
        for name, pattern in rule.arguments.items()
    )


def _argument_fits(rule: ApprovalRule, value: str, pattern: str) -> bool:
    if rule.decision is Decision.ALLOW:
        return _allow_fits(value, pattern)
    return _any_part_fits(value, pattern)


def _allow_fits(command: str, pattern: str) -> bool:
    """A match in which no wildcard stands for a character that joins commands.

    The pattern `*` alone is meant: whoever writes it allows everything.
    """
    if pattern == "*":
        return True
    parts = re.split(r"([*?])", pattern)
    wild = {"*": f"[^{_JOINERS}]*", "?": f"[^{_JOINERS}]"}
    expression = "".join(wild.get(part, re.escape(part)) for part in parts)
    return re.fullmatch(expression, command) is not None


def _any_part_fits(command: str, pattern: str) -> bool:
    bare = _QUOTES.sub("", command)
    parts = [part for text in (command, bare) for part in re.split(f"[{_JOINERS}]+", text)]
    plain = [_BEFORE.sub("", " ".join(part.split())) for part in parts]
    return any(fnmatchcase(part.strip(), pattern) for part in (command, *parts, *plain))


def _literal(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)


def _text(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
