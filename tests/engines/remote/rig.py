"""A remote engine on a given server, and what it told the meter."""

from __future__ import annotations

import httpx2

from appliance.clock import SystemClock
from appliance.config.models import RemoteModel
from appliance.engines.remote.engine import RemoteEngine
from appliance.types import Usage


class Book:
    """Notes each word to the meter."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.usage = Usage()

    async def sent(self, turn_id: str, guess: Usage) -> str:
        self.words.append("sent")
        return ""

    async def adopted(self, turn_id: str, tape: str) -> None:
        self.words.append("adopted")

    async def refused(self, turn_id: str) -> None:
        self.words.append("refused")

    async def seen(self, turn_id: str, usage: Usage) -> None:
        self.words.append("seen")
        self.usage = usage


def remote_engine(url: str, book: Book | None = None, **keys: object) -> RemoteEngine:
    entry = RemoteModel.model_validate(
        {"engine": "remote", "base_url": f"{url}/v1", "model": "stand-in", **keys}
    )
    return RemoteEngine(
        "far",
        entry,
        lend=lambda: httpx2.AsyncClient(trust_env=False),
        key=lambda: "a-key",
        meter=book or Book(),
        clock=SystemClock(),
    )
