"""What a call costs, to the micro-dollar, in integers.

Prices are micro-dollars per million tokens, so `tokens × price` is in 10⁻⁶ micro-dollars and one
division at the end suffices. It rounds up, once per call: the ledger may be a fraction of a
micro-dollar above the provider's own sum, never below it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.config.models import Prices
from appliance.types import Usage

TOKENS_PER_PRICE = 1_000_000

COUNT_MAX = 1_000_000_000
"""Of tokens in one count: a thousand of the largest windows. More is not a count, and would not
fit the ledger."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Tokens as the provider counts them: the four are disjoint."""

    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Due:
    """What an answer on tape says is due for its call; None for nothing, since it was refused."""

    usage: Usage | None


def tallied(before: Tally, usage: Mapping[str, Any]) -> Tally:
    """The tally after a `usage` object; its counts are cumulative, absent ones stay."""

    def count(name: str, was: int) -> int:
        value = usage.get(name)
        return value if isinstance(value, int) and 0 <= value <= COUNT_MAX else was

    return Tally(
        count("input_tokens", before.input_tokens),
        count("cache_read_input_tokens", before.cache_read_tokens),
        count("cache_creation_input_tokens", before.cache_write_tokens),
        count("output_tokens", before.output_tokens),
    )


def cost_micro_usd(tally: Tally, prices: Prices) -> int:
    """Micro-dollars, rounded up."""
    millionths = (
        tally.input_tokens * prices.input_micro_usd
        + tally.cache_read_tokens * prices.cache_read_micro_usd
        + tally.cache_write_tokens * prices.cache_write_micro_usd
        + tally.output_tokens * prices.output_micro_usd
    )
    return -(-millionths // TOKENS_PER_PRICE)


def usage_of(tally: Tally, prices: Prices, *, prefill_ms: int = 0, decode_ms: int = 0) -> Usage:
    return Usage(
        prompt_tokens=tally.input_tokens + tally.cache_read_tokens + tally.cache_write_tokens,
        cached_tokens=tally.cache_read_tokens,
        cache_write_tokens=tally.cache_write_tokens,
        output_tokens=tally.output_tokens,
        spend_micro_usd=cost_micro_usd(tally, prices),
        prefill_ms=prefill_ms,
        decode_ms=decode_ms,
    )
