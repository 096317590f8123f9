"""Doors that are not built in yet: no cloud, no budget, no tools."""

from __future__ import annotations

from typing import Any

from appliance.errors import Refused
from appliance.router.types import Score, StepFacts
from appliance.tools.types import (
    Allow,
    Ask,
    Deny,
    InDoubt,
    Intent,
    NotStarted,
    ToolContext,
    ToolOutcome,
    error_outcome,
)
from appliance.types import ToolCallBlock, ToolSpec


class ClosedDoor:
    def permits(self, model: str) -> bool:
        return False

    def rate_limit_tokens_left(self, model: str) -> int | None:
        return None


class NoPurse:
    def left_micro_usd(self, agent: str, session_id: str) -> int | None:
        return None

    async def reserve(self, **_: Any) -> Any:
        raise Refused("no budget is set up for calls that cost money")

    async def summary(self) -> dict[str, Any]:
        return {}


class EvenScore:
    def score(self, step: StepFacts) -> Score:
        return Score(0.6, 0.85)


class NoTools:
    def specs(self, agent: str) -> tuple[ToolSpec, ...]:
        return ()

    def prepare(self, call: ToolCallBlock, ctx: ToolContext) -> Intent | ToolOutcome:
        return error_outcome(call.call_id, f"there is no tool {call.name!r}")

    def decide(self, intent: Intent, ctx: ToolContext) -> Allow | Ask | Deny:
        return Deny("there are no tools")

    async def run(self, intent: Intent, ctx: ToolContext) -> ToolOutcome | InDoubt:
        return error_outcome(intent.call_id, "there are no tools")

    async def adopt(self, intent: Intent, ctx: ToolContext) -> ToolOutcome | InDoubt | NotStarted:
        return NotStarted(intent.call_id)
