"""Engine remote against a real server in another process: faults, tools, money."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from appliance.errors import ApplianceError, BadRequest, CutStream, EngineError
from appliance.types import (
    Completion,
    GenerateRequest,
    Role,
    StopReason,
    ThinkingBlock,
    ToolCallBlock,
    ToolCallDelta,
    ToolChoice,
    ToolChoiceKind,
    ToolSpec,
    text_message,
)
from tests.engines.remote.rig import Book, remote_engine
from tests.fakes.openai.running import stand_in

WEATHER = ToolSpec(
    "mcp.weather.now",
    "The weather in a city.",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with stand_in() as found:
        yield found


def ask(text: str, **keys: object) -> GenerateRequest:
    return GenerateRequest("r", (text_message(Role.USER, text),), **keys)  # type: ignore[arg-type]


async def answer(url: str, request: GenerateRequest, book: Book | None = None) -> Completion:
    async with remote_engine(url, book, embeddings=True) as engine:
        *_, last = [item async for item in engine.generate(request)]
    assert isinstance(last, Completion)
    return last


@pytest.mark.parametrize(
    ("fault", "kind", "status", "word"),
    [
        ("cut", CutStream, None, "stream_cut"),
        ("no_done", CutStream, None, "stream_cut"),
        ("garbage", EngineError, None, "malformed"),
        ("error_mid", EngineError, 200, "server_error"),
        ("429", EngineError, 429, "stand_in"),
        ("500", EngineError, 500, "stand_in"),
        ("401", EngineError, 401, "stand_in"),
    ],
)
async def test_each_fault_is_told_once_and_typed(
    url: str, fault: str, kind: type[ApplianceError], status: int | None, word: str
) -> None:
    with pytest.raises(kind) as caught:
        await answer(url, ask(f"fault:{fault}"))
    assert (caught.value.details["status"], caught.value.details["type"]) == (status, word)
    assert caught.value.retry_after_s == (7.0 if fault.isdigit() else None)


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    with pytest.raises(EngineError) as caught:
        await answer("http://127.0.0.1:9", ask("hello"))
    assert caught.value.details["type"] == "unreachable"


async def test_a_loading_server_is_an_error_worth_retrying() -> None:
    with stand_in("--load-s", "600") as url, pytest.raises(EngineError) as caught:
        await answer(url, ask("hello"))
    assert caught.value.details["status"] == 503 and caught.value.retryable


async def test_a_call_gets_our_id_and_our_name(url: str) -> None:
    must = ToolChoice(ToolChoiceKind.ANY)
    request = ask("weather?", tools=(WEATHER,), tool_choice=must)
    async with remote_engine(url) as engine:
        *deltas, last = [item async for item in engine.generate(request)]
    assert isinstance(last, Completion)
    (call,) = last.message.tool_calls
    pieces = [d for d in deltas if isinstance(d, ToolCallDelta)]
    assert (call.name, call.arguments) == ("mcp.weather.now", {"city": "Paris"})
    assert {piece.call_id for piece in pieces} == {call.call_id} != {"theirs!"}
    assert last.stop_reason is StopReason.TOOL_USE


async def test_unfinished_arguments_are_a_malformed_answer(url: str) -> None:
    must = ToolChoice(ToolChoiceKind.ANY)
    with pytest.raises(EngineError, match="no JSON"):
        await answer(url, ask("fault:bad_arguments", tools=(WEATHER,), tool_choice=must))


async def test_reasoning_becomes_thinking(url: str) -> None:
    completion = await answer(url, ask("think twice"))
    assert completion.message.blocks[0] == ThinkingBlock("hm")
    assert completion.message.text == "think twice "


async def test_the_meter_hears_of_every_call(url: str) -> None:
    book = Book()
    completion = await answer(url, ask("one two"), book)
    assert book.words == ["sent", "seen"] and book.usage == completion.usage
    refused = Book()
    with pytest.raises(EngineError):
        await answer(url, ask("fault:401"), refused)
    assert refused.words == ["sent", "refused"]


async def test_vectors_are_normalised_and_in_order(url: str) -> None:
    async with remote_engine(url, embeddings=True) as engine:
        assert await engine.embed(["abc", ""]) == [[0.6, 0.8], [0.0, 1.0]]
    async with remote_engine(url) as engine:
        with pytest.raises(BadRequest):
            await engine.embed(["abc"])


async def test_what_was_used_before_an_answer_broke_off_is_booked(url: str) -> None:
    for fault in ("error_mid", "garbage"):
        book = Book()
        with pytest.raises(EngineError):
            await answer(url, ask(f"fault:{fault}"), book)
        assert book.words == ["sent", "seen"]
        assert book.usage.output_tokens > 0
    cancelled = Book()
    async with remote_engine(url, cancelled) as engine:
        stream = engine.generate(ask("fault:endless"))
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]
    assert cancelled.words == ["sent", "seen"]


async def test_half_characters_and_odd_line_ends_do_no_harm(url: str) -> None:
    said = await answer(url, ask("a\u2028b\u0085c"))
    assert said.message.text.strip() == "a\u2028b\u0085c"
    halved = await answer(url, ask("fault:surrogate"))
    assert "\ufffd" in halved.message.text
    assert halved.message.text.encode()


async def test_arguments_may_come_as_an_object(url: str) -> None:
    choice = ToolChoice(ToolChoiceKind.ANY)
    said = await answer(url, ask("fault:object_arguments", tools=(WEATHER,), tool_choice=choice))
    (call,) = (block for block in said.message.blocks if isinstance(block, ToolCallBlock))
    assert call.arguments == {"city": "Paris"}


async def test_calls_share_a_connection() -> None:
    connections = 0
    said = b'data: {"choices": [{"delta": {"content": "so"}, "finish_reason": "stop"}]}\n\n'
    ended = b"data: [DONE]\n\n"
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (said, ended, b""))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.split(b"content-length:")[1].split()[0]))
                writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server, remote_engine(url) as engine:
        for _ in range(3):
            *_, last = [item async for item in engine.generate(ask("go"))]
            assert isinstance(last, Completion) and last.message.text == "so"
    assert connections == 1
