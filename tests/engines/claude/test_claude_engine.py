"""The engine against the stand-in: answers, tools, thinking, money; each fault is one outcome."""

from __future__ import annotations

import pytest

from appliance.engines.provider.patience import Patience
from appliance.errors import (
    ApplianceError,
    CutStream,
    EgressDenied,
    EngineError,
    EngineTimeout,
    PromptTooLong,
)
from appliance.router.retry import Failure, classify
from appliance.types import (
    Label,
    Message,
    Role,
    StopReason,
    TextDelta,
    ThinkingBlock,
    ToolCallDelta,
    ToolSpec,
    text_message,
)
from tests.engines.claude.rig import Lines, answer, ask, config_for, engine_for
from tests.fakes.claude.running import Claude
from tests.fakes.claude.server import END

TOOL = ToolSpec(
    "mcp.git.log",
    "Shows commits.",
    {
        "type": "object",
        "properties": {"path": {"type": "string"}, "count": {"type": "integer"}},
        "required": ["path", "count"],
        "additionalProperties": False,
    },
)


async def test_an_answer_streams_and_ends_with_its_bill(claude: Claude) -> None:
    lines = Lines()
    async with engine_for(config_for(claude.url), lines, claude.key) as engine:
        deltas, done = await answer(engine, ask())
    said = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    assert done.message.text == said
    assert said.endswith(END)
    assert done.stop_reason is StopReason.END_TURN
    bill = await claude.bill()
    assert done.usage.spend_micro_usd == bill["micro_usd"]
    assert lines.usages[-1].spend_micro_usd == bill["micro_usd"]
    assert lines.usages[0].prompt_tokens == done.usage.prompt_tokens


async def test_calls_share_a_connection_those_refused_too_and_one_that_was_cut_ends_it(
    claude: Claude,
) -> None:
    async with engine_for(config_for(claude.url), Lines(), claude.key) as engine:
        for _ in range(4):
            await answer(engine, ask())
        await claude.plan("529")
        with pytest.raises(EngineError):
            await answer(engine, ask())
        await answer(engine, ask())
        assert await claude.connections() == 1
        await claude.plan("reset_mid:6")
        with pytest.raises(CutStream):
            await answer(engine, ask())
        await answer(engine, ask())
        assert await claude.connections() == 2


async def test_a_tool_call_comes_back_under_our_name_and_our_id(claude: Claude) -> None:
    await claude.plan("call")
    async with engine_for(config_for(claude.url), Lines(), claude.key) as engine:
        deltas, done = await answer(engine, ask(tools=(TOOL,)))
    (call,) = done.message.tool_calls
    assert call.name == "mcp.git.log"
    assert call.call_id.startswith("call_")
    assert call.arguments == {"path": "value", "count": 1}
    assert done.stop_reason is StopReason.TOOL_USE
    assert {d.call_id for d in deltas if isinstance(d, ToolCallDelta)} == {call.call_id}
    assert b'"strict":true' in claude.log.read_bytes().replace(b": ", b":")


async def test_thinking_is_signed_and_goes_back_to_its_provider(claude: Claude) -> None:
    await claude.plan("thinking")
    async with engine_for(config_for(claude.url), Lines(), claude.key) as engine:
        _, done = await answer(engine, ask(thinking=True))
        thought = done.message.blocks[0]
        assert isinstance(thought, ThinkingBlock) and thought.signature
        foreign = ThinkingBlock("I am another model", "not-a-signature", "other")
        history = (
            text_message(Role.USER, "first"),
            done.message,
            text_message(Role.USER, "second"),
            Message(Role.ASSISTANT, (foreign, *text_message(Role.ASSISTANT, "Yes.").blocks)),
            text_message(Role.USER, "third"),
        )
        await answer(engine, ask(thinking=True).__class__("r2", history, thinking=True))
    assert await claude.violations() == []
    assert b"I am another model" not in claude.log.read_bytes()


async def test_counting_tokens_asks_the_provider(claude: Claude) -> None:
    async with engine_for(config_for(claude.url), Lines(), claude.key) as engine:
        short = await engine.count_tokens([text_message(Role.USER, "a")], [])
        long = await engine.count_tokens([text_message(Role.USER, "a" * 4000)], [TOOL])
    assert 0 < short < 100 < 1000 < long


async def test_what_is_asked_again_is_read_from_the_cache(claude: Claude) -> None:
    system = text_message(Role.SYSTEM, "You know this handbook. " * 1000)
    async with engine_for(config_for(claude.url), Lines(), claude.key) as engine:
        first = ask().__class__("r1", (system, text_message(Role.USER, "One?")))
        second = ask().__class__("r2", (system, text_message(Role.USER, "Two?")))
        _, one = await answer(engine, first)
        _, two = await answer(engine, second)
    assert one.usage.cache_write_tokens > 5_000
    assert two.usage.cached_tokens == one.usage.cache_write_tokens
    assert two.usage.spend_micro_usd * 5 < one.usage.spend_micro_usd
    bill = await claude.bill()
    assert one.usage.spend_micro_usd + two.usage.spend_micro_usd == bill["micro_usd"]


OUTCOMES = [
    ("429:7", EngineError, Failure.THROTTLED),
    ("429spend", EngineError, Failure.SPENT),
    ("529", EngineError, Failure.OVERLOADED),
    ("500", EngineError, Failure.TRANSIENT),
    ("502html", EngineError, Failure.TRANSIENT),
    ("503", EngineError, Failure.TRANSIENT),
    ("504", EngineError, Failure.TRANSIENT),
    ("401", EngineError, Failure.DENIED),
    ("402", EngineError, Failure.SPENT),
    ("403", EngineError, Failure.DENIED),
    ("404", EngineError, Failure.OURS),
    ("413", EngineError, Failure.OURS),
    ("reset_before", EngineError, Failure.TRANSIENT),
    ("reset_mid:1", CutStream, Failure.TRANSIENT),
    ("reset_mid:5", CutStream, Failure.TRANSIENT),
    ("eof_mid:0", CutStream, Failure.TRANSIENT),
    ("eof_mid:5", CutStream, Failure.TRANSIENT),
    ("overloaded_mid:0", EngineError, Failure.OVERLOADED),
    ("overloaded_mid", EngineError, Failure.OVERLOADED),
    ("error_mid", EngineError, Failure.TRANSIENT),
    ("malformed", EngineError, Failure.TRANSIENT),
    ("bad_utf8", EngineError, Failure.TRANSIENT),
    ("half_call", EngineError, Failure.TRANSIENT),
    ("slow_headers:20", EngineTimeout, Failure.TRANSIENT),
    ("slow:20", EngineTimeout, Failure.TRANSIENT),
    ("slow_ping:20", EngineTimeout, Failure.TRANSIENT),
    ("stall", EngineTimeout, Failure.TRANSIENT),
]


async def test_each_fault_is_one_typed_outcome(claude: Claude) -> None:
    quick = Patience(2.0, 0.4, 0.4, 0.4, 10.0)
    lines = Lines()
    async with engine_for(config_for(claude.url), lines, claude.key, quick) as engine:
        for step, kind, failure in OUTCOMES:
            await claude.plan(step)
            with pytest.raises(ApplianceError) as caught:
                await answer(engine, ask(tools=(TOOL,)))
            error = caught.value
            assert type(error) is kind, f"{step}: {error!r}"
            said = error.details
            found = classify(said.get("status"), said.get("type"), said.get("error_code"))
            assert found is failure, f"{step}: {said}"
        seen = await claude.seen()
        for step, _, _ in OUTCOMES:
            assert seen[step.partition(":")[0]] > 0, f"{step} was not injected"
        await answer(engine, ask())


async def test_a_429_says_how_long_to_wait_and_shuts_the_rate(claude: Claude) -> None:
    await claude.plan("429:7")
    async with engine_for(config_for(claude.url), Lines(), claude.key) as engine:
        with pytest.raises(EngineError) as caught:
            await answer(engine, ask())
    assert caught.value.retry_after_s == 7
    assert caught.value.details["request_id"].startswith("req_")


async def test_a_prompt_too_long_is_told_as_such(claude: Claude) -> None:
    await claude.plan("too_long")
    async with engine_for(config_for(claude.url), Lines(), claude.key) as engine:
        with pytest.raises(PromptTooLong, match="250000 tokens > 200000"):
            await answer(engine, ask())


@pytest.mark.parametrize("step", ["crlf", "unknown_event", "empty"])
async def test_odd_but_whole_streams_are_answers(claude: Claude, step: str) -> None:
    await claude.plan(step)
    async with engine_for(config_for(claude.url), Lines(), claude.key) as engine:
        _, done = await answer(engine, ask())
    assert done.stop_reason is StopReason.END_TURN


async def test_refusal_and_max_tokens_are_said_not_raised(claude: Claude) -> None:
    await claude.plan("refusal", "max_tokens")
    async with engine_for(config_for(claude.url), Lines(), claude.key) as engine:
        assert (await answer(engine, ask()))[1].stop_reason is StopReason.REFUSAL
        assert (await answer(engine, ask()))[1].stop_reason is StopReason.MAX_TOKENS


async def test_a_cut_stream_has_told_the_meter_what_it_cost(claude: Claude) -> None:
    await claude.plan("eof_mid:12")
    lines = Lines()
    async with engine_for(config_for(claude.url), lines, claude.key) as engine:
        with pytest.raises(CutStream):
            await answer(engine, ask("x" * 4000))
    bill = await claude.bill()
    assert abs(bill["micro_usd"] - lines.usages[-1].spend_micro_usd) <= 8 * 10


async def test_private_words_never_reach_the_wire_whoever_sends_them(claude: Claude) -> None:
    lines = Lines()
    async with engine_for(config_for(claude.url), lines, claude.key) as engine:
        with pytest.raises(EgressDenied):
            await answer(engine, ask("CANARY-1", label=Label.PRIVATE))
        hidden = text_message(Role.USER, "CANARY-2", Label.PRIVATE)
        with pytest.raises(EgressDenied):
            await answer(engine, ask().__class__("r", (hidden,), label=Label.PUBLIC))
        with pytest.raises(EgressDenied):
            await engine.count_tokens([hidden], [])
        await answer(engine, ask("PUBLIC-WORDS"))
    log = claude.log.read_bytes()
    assert b"CANARY" not in log
    assert b"PUBLIC-WORDS" in log
    assert [body["label"] for body in lines.of("egress.refused")] == ["private"] * 3
    sent, received = lines.of("egress.sent"), lines.of("egress.received")
    assert len(sent) == len(received) == 1
    assert received[0]["bytes_in"] > 500


async def test_what_the_environment_says_changes_no_byte(
    claude: Claude, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "x-evil: yes\nauthorization: Bearer stolen")
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "stolen")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    async with engine_for(config_for(claude.url), Lines(), claude.key) as engine:
        await answer(engine, ask())
    log = claude.log.read_bytes().lower()
    assert b"x-evil" not in log
    assert b"stolen" not in log
    assert b"x-stainless" not in log


async def test_without_a_key_nothing_is_sent(claude: Claude) -> None:
    async with engine_for(config_for(claude.url), Lines(), "") as engine:
        with pytest.raises(EngineError, match="no key"):
            await answer(engine, ask())
    assert claude.log.read_bytes() == b""
