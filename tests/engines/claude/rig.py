"""A Claude engine over the real door, for tests against the stand-in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from appliance.clock import SystemClock
from appliance.config.schema import Config
from appliance.egress.door import Egress
from appliance.egress.guard import Guard
from appliance.egress.rules import Purpose
from appliance.engines.claude.engine import ClaudeEngine
from appliance.engines.provider.patience import Patience
from appliance.types import Completion, Delta, GenerateRequest, Json, Role, Usage, text_message

SHORT = Patience(connect_s=2.0, headers_s=1.0, first_token_s=1.0, next_token_s=1.0, answer_s=20.0)

PRICES = {
    "input_micro_usd": 2_000_000,
    "output_micro_usd": 10_000_000,
    "cache_read_micro_usd": 200_000,
    "cache_write_micro_usd": 2_500_000,
}


@dataclass
class Lines:
    """An audit and a meter that keep what they are told."""

    audit: list[tuple[str, dict[str, Json]]] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    async def record(self, kind: str, body: dict[str, Json]) -> None:
        self.audit.append((kind, body))

    async def sent(self, turn_id: str, guess: Usage) -> str:
        self.calls.append("sent")
        return ""

    async def adopted(self, turn_id: str, tape: str) -> None:
        self.calls.append("adopted")

    async def refused(self, turn_id: str) -> None:
        self.calls.append("refused")

    async def seen(self, turn_id: str, usage: Usage) -> None:
        self.usages.append(usage)

    def of(self, kind: str) -> list[dict[str, Json]]:
        return [body for each, body in self.audit if each == kind]


def config_for(url: str, *, network: dict[str, Any] | None = None, **model: Any) -> Config:
    entry = {"engine": "claude", "model": "claude-stand-in", "base_url": url, "prices": PRICES}
    return Config.model_validate(
        {"models": {"claude": {**entry, **model}}, "network": network or {}}
    )


def engine_for(config: Config, lines: Lines, key: str, patience: Patience = SHORT) -> ClaudeEngine:
    clock = SystemClock()
    egress = Egress(
        lambda: config, lines, clock, environment={"ANTHROPIC_API_KEY": key}, guard=Guard()
    )
    model = config.models["claude"]
    assert model.engine == "claude"
    return ClaudeEngine(
        "claude",
        model,
        lend=lambda: egress.client(Purpose("model", "claude")),
        key=lambda: egress.key_of("claude"),
        meter=lines,
        clock=clock,
        patience=patience,
    )


def ask(text: str = "What is it?", **more: Any) -> GenerateRequest:
    return GenerateRequest("r1", (text_message(Role.USER, text),), turn_id="turn_1", **more)


async def answer(engine: ClaudeEngine, request: GenerateRequest) -> tuple[list[Delta], Completion]:
    """The deltas and the completion; fails if the completion is not the last item."""
    items = [item async for item in engine.generate(request)]
    assert isinstance(items[-1], Completion)
    deltas = [item for item in items[:-1] if not isinstance(item, Completion)]
    assert len(deltas) == len(items) - 1
    return deltas, items[-1]
