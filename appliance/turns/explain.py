"""A turn in sentences: where each step ran and why, what failed, what tools did, what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from appliance.router.explain import money
from appliance.turns.state import TurnState


def explain_turn(state: TurnState, events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines for a person, in the order things happened. `events` are as followers get them."""
    lines = [f"Turn {state.turn_id} of agent {state.accepted.agent}, label {state.label.value}."]
    for event in events:
        lines += _SAY.get(event["type"], _nothing)(event)
    usage = state.usage
    lines.append(
        f"In all: {usage.prompt_tokens} prompt tokens ({usage.cached_tokens} from a cache), "
        f"{usage.output_tokens} generated, {money(usage.spend_micro_usd)} spent."
    )
    return lines


def _nothing(event: Mapping[str, Any]) -> list[str]:
    return []


def _routed(event: Mapping[str, Any]) -> list[str]:
    attempt = f", attempt {event['attempt'] + 1}" if event.get("attempt") else ""
    why = event.get("route", {}).get("why", [])
    return [f"Step {event['step'] + 1}{attempt}:", *(f"  {line}" for line in why)]


def _completed(event: Mapping[str, Any]) -> list[str]:
    usage = event["usage"]
    parts = [f"{usage.get('output_tokens', 0)} tokens"]
    if usage.get("decode_ms"):
        rate = usage["output_tokens"] * 1000 / usage["decode_ms"]
        parts.append(f"{rate:.1f} tokens/s")
    parts += [
        f"{words} {usage[name] / 1000:.2f} s"
        for name, words in (
            ("queue_ms", "waited"), ("load_ms", "loaded the model in"), ("prefill_ms", "read in"),
        )
        if usage.get(name)
    ]  # fmt: skip
    lines = [
        f"  Answered by {event['target']}: {', '.join(parts)}; ended with {event['stop_reason']}."
    ]
    if event.get("verdict"):
        lines.append(f"  {event['verdict']}")
    return lines


def _charged(event: Mapping[str, Any]) -> list[str]:
    guessed = " (guessed: its provider told no more)" if event.get("assumed") else ""
    return [f"  Charged {money(event.get('micro_usd', 0))}{guessed}."]


def _failed(event: Mapping[str, Any]) -> list[str]:
    return [f"  {event['target']} failed: {event['error']['message']}"]


def _escalated(event: Mapping[str, Any]) -> list[str]:
    return [f"  {event['reason']}"]


def _compacted(event: Mapping[str, Any]) -> list[str]:
    return [
        f"  The history did not fit {event['target']}'s window of {event['window_tokens']} tokens: "
        f"{event.get('dropped_messages', 0)} messages were left out and "
        f"{event.get('shortened_results', 0)} results shortened "
        f"({event['prompt_tokens_before']} → {event['prompt_tokens_after']} tokens)."
    ]


def _asked(event: Mapping[str, Any]) -> list[str]:
    return [f"  Asked whether {event['tool']} may run: {event['summary']}"]


def _answered(event: Mapping[str, Any]) -> list[str]:
    return [f"  Answered {event['decision']} by uid {event['by_uid']}."]


def _tool(event: Mapping[str, Any]) -> list[str]:
    worked = "failed" if event["result"].get("is_error") else "worked"
    return [f"  Tool {event['tool']} {worked} after {event.get('duration_ms', 0) / 1000:.2f} s."]


def _doubt(event: Mapping[str, Any]) -> list[str]:
    return [f"  Tool {event['tool']} is in doubt: {event['reason']}"]


def _resumed(event: Mapping[str, Any]) -> list[str]:
    return [f"Resumed: {event['reason']}."]


def _ended(event: Mapping[str, Any]) -> list[str]:
    if "error" in event:
        return [f"Failed: {event['error']['message']}"]
    return [f"Cancelled: {event['reason']}."] if "reason" in event else []


_SAY = {
    "step.routed": _routed,
    "step.completed": _completed,
    "step.failed": _failed,
    "step.escalated": _escalated,
    "budget.settled": _charged,
    "history.compacted": _compacted,
    "approval.asked": _asked,
    "approval.answered": _answered,
    "tool.completed": _tool,
    "tool.in_doubt": _doubt,
    "turn.resumed": _resumed,
    "turn.failed": _ended,
    "turn.cancelled": _ended,
}
