"""Doors that are not built in yet: no cloud, no budget."""

from __future__ import annotations

from typing import Any

from appliance.errors import Refused


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
