"""What a call cost, by currency."""

from __future__ import annotations

from typing import TypeAlias

from appliance.store.ledger import Currency
from appliance.types import Json, Usage

Amounts: TypeAlias = dict[Currency, int]


def amounts_of(usage: Usage) -> Amounts:
    return {
        Currency.MICRO_USD: usage.spend_micro_usd,
        Currency.CLOUD_TOKENS: usage.prompt_tokens + usage.output_tokens,
    }


def to_json(amounts: Amounts) -> dict[str, Json]:
    return {currency.value: amount for currency, amount in amounts.items()}
