"""Providers that behave badly: an answer that is whole is taken, all else is one typed failure."""

from __future__ import annotations

import asyncio

import pytest

from appliance.engines.provider.patience import Patience
from appliance.errors import ApplianceError
from appliance.router.retry import classify
from appliance.types import StopReason, ToolSpec
from tests.engines.claude.rig import Lines, answer, ask, config_for, engine_for
from tests.fakes.claude.nasty import RIGHT, TEXT, WRONG, nasty_provider

QUICK = Patience(connect_s=2.0, headers_s=2.0, first_token_s=2.0, next_token_s=2.0, answer_s=8.0)
LATEST_S = 60.0
"""More than any deadline in `QUICK`: a call still running then hangs."""

TOOL = ToolSpec("mcp.git.log", "Shows commits.", {"type": "object", "properties": {}})


@pytest.mark.parametrize("name", RIGHT)
async def test_an_odd_answer_that_is_whole_is_an_answer(name: str) -> None:
    async with nasty_provider() as provider:
        provider.script = RIGHT[name]
        lines = Lines()
        async with engine_for(config_for(provider.url), lines, "k", QUICK) as engine:
            async with asyncio.timeout(LATEST_S):
                _, done = await answer(engine, ask())
    assert done.message.text == TEXT
    assert done.stop_reason is StopReason.END_TURN
    assert 0 <= done.usage.spend_micro_usd < 1_000


@pytest.mark.parametrize("name", WRONG)
async def test_everything_else_is_one_typed_failure(name: str) -> None:
    script, failure = WRONG[name]
    async with nasty_provider() as provider:
        provider.script = script
        async with engine_for(config_for(provider.url), Lines(), "k", QUICK) as engine:
            async with asyncio.timeout(LATEST_S):
                with pytest.raises(ApplianceError) as caught:
                    await answer(engine, ask(tools=(TOOL,)))
    details = caught.value.details
    said = classify(details.get("status"), details.get("type"), details.get("error_code"))
    assert said.value == failure, f"{caught.value!r} {details}"
    assert len(provider.requests) == 1, "an engine never tries again by itself"
    wait_s = caught.value.retry_after_s
    assert wait_s == {"429 until a date": 3.0, "429 with a reset only": 3.0,
                      "429 with a wait of years": 99999999999.0}.get(name)  # fmt: skip
