"""All the bounds of a turn, in one place: steps, tokens, money, seconds, and going in circles."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

from appliance.config.machine import Limits
from appliance.errors import ApplianceError, BudgetExceeded
from appliance.turns.events import LimitOverrides
from appliance.turns.state import TurnState


class LimitReached(ApplianceError):
    """A turn met one of its bounds. `details` holds the bound's name and value."""

    code = "limit_reached"
    http_status = 422


@dataclass(frozen=True, slots=True)
class Left:
    """What a turn may still use."""

    output_tokens: int
    turn_s: float
    spend_micro_usd: int


def tightened(limits: Limits, overrides: LimitOverrides) -> Limits:
    """The agent's limits, lowered where the caller asks for less; never raised."""
    update = {
        name: min(getattr(limits, name), value)
        for name, value in overrides.model_dump(exclude_none=True).items()
    }
    return limits.model_copy(update=update)


def check(state: TurnState, limits: Limits, elapsed_s: float) -> Left:
    """What is left before the next step; raises `LimitReached` where nothing is.

    `elapsed_s` counts from acceptance. Called before each model call, so a turn overshoots by
    one answer at most.
    """
    _require(len(state.steps) < limits.steps_max or state.steps[-1].is_open, "steps_max",
             limits.steps_max, "model calls")  # fmt: skip
    left = Left(
        limits.output_tokens_max - state.usage.output_tokens,
        limits.turn_s_max - elapsed_s,
        limits.spend_micro_usd_max - state.spent_micro_usd,
    )
    _require(left.output_tokens > 0, "output_tokens_max", limits.output_tokens_max, "tokens")
    _require(left.turn_s > 0, "turn_s_max", limits.turn_s_max, "seconds")
    repeats = same_call_repeats(state)
    _require(repeats < limits.same_call_max, "same_call_max", limits.same_call_max,
             "times the same call with the same result")  # fmt: skip
    return left


def check_spend(left: Left, micro_usd: int) -> None:
    """Raises `BudgetExceeded` where a call that may cost this much is beyond the turn's money."""
    if micro_usd > left.spend_micro_usd:
        raise BudgetExceeded(
            f"the turn may still spend {max(left.spend_micro_usd, 0)} micro-dollars, and this call "
            f"may cost {micro_usd}",
            hint="raise spend_usd_max in [daemon.limits] or in the agent's limits",
            details={"limit": "spend_usd_max"},
        )


def same_call_repeats(state: TurnState) -> int:
    """How often the most repeated (call, result) pair of the turn has come up, minus one."""
    seen: Counter[str] = Counter()
    for step in state.steps:
        for call in step.calls:
            if call.result is None:
                continue
            said = [getattr(part, "text", "") for part in call.result.content]
            arguments = json.dumps(call.call.arguments, sort_keys=True)
            seen[f"{call.call.name}\0{arguments}\0{said}"] += 1
    return max(seen.values(), default=1) - 1


def _require(holds: bool, name: str, bound: float, unit: str) -> None:
    if not holds:
        raise LimitReached(
            f"the turn has used all it may: {bound:g} {unit}",
            hint=f"raise {name} in [daemon.limits] or in the agent's limits",
            details={"limit": name, "bound": bound},
        )
