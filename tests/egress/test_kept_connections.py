"""Connections that carry one call after another, over real sockets, and what closes them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from appliance.egress.courier.courier import Courier
from appliance.egress.courier.replay import replayed
from appliance.egress.courier.tape import found
from appliance.egress.errand import Errand, on_errand
from appliance.types import Label
from tests.egress.test_courier import client
from tests.engines.claude.rig import Lines

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
ANSWER = HEAD + b"5\r\nhello\r\n0\r\n\r\n"


class Provider:
    """Answers every request at once and keeps its connections."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[bytes] = []
        self.connections: list[asyncio.StreamWriter] = []
        self.ended = asyncio.Semaphore(0)
        """Released each time a connection has come to its end."""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests.append(head + await reader.readexactly(4))
                writer.write(ANSWER)
                await writer.drain()
        writer.close()
        self.ended.release()

    def hang_up(self) -> None:
        for writer in self.connections:
            writer.close()


@asynccontextmanager
async def provider(tls: ssl.SSLContext | None = None) -> AsyncIterator[Provider]:
    it = Provider()
    server = await asyncio.start_server(it.answer, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    it.url = f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"
    try:
        yield it
    finally:
        server.close()


async def ask(it: Provider, http: httpx2.AsyncClient, number: int, *, taped: bool = True) -> bytes:
    """One call to its end, of a turn and an agent of its own."""
    request = http.build_request("POST", f"{it.url}/v1", content=b"body")
    tape = f"hold_{number}" if taped else ""
    with on_errand(Errand(Label.PUBLIC, f"agent_{number}", f"turn_{number}", tape)):
        response = await http.send(request, stream=True)
    try:
        return await response.aread()
    finally:
        await response.aclose()


@pytest.mark.parametrize("taped", [True, False])
async def test_calls_share_a_connection_and_each_is_audited_and_taped(
    tmp_path: Path, taped: bool
) -> None:
    lines = Lines()
    async with provider() as it, Courier(tmp_path) as courier, client(it.url, courier, lines) as h:
        assert await courier.is_ready()
        for number in range(5):
            assert await ask(it, h, number, taped=taped) == b"hello"
        tapes = found(tmp_path)
        assert [tape.turn_id for tape in tapes] == [f"turn_{n}" for n in range(5)] * taped
        assert [await (await replayed(tape)).aread() for tape in tapes] == [b"hello"] * len(tapes)
    assert len(it.connections) == 1
    sent = [body for kind, body in lines.audit if kind == "egress.sent"]
    assert [body["agent"] for body in sent] == [f"agent_{n}" for n in range(5)]


async def test_a_handshake_serves_many_calls(
    certificate: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    (tmp_path / "tapes").mkdir()
    async with (
        provider(context) as it,
        Courier(tmp_path / "tapes") as courier,
        client(it.url, courier) as http,
    ):
        assert await courier.is_ready()
        for number in range(5):
            assert await ask(it, http, number) == b"hello"
        assert len(it.connections) == 1
        it.hang_up()
        await it.ended.acquire()
        assert await ask(it, http, 5) == b"hello"
    assert (len(it.connections), len(it.requests)) == (2, 6)


@pytest.mark.parametrize("taped", [True, False])
async def test_one_that_was_closed_while_idle_fails_no_call_and_repeats_none(
    tmp_path: Path, taped: bool
) -> None:
    lines = Lines()
    async with provider() as it, Courier(tmp_path) as courier, client(it.url, courier, lines) as h:
        assert await courier.is_ready()
        for number in range(4):
            assert await ask(it, h, number, taped=taped) == b"hello"
            it.hang_up()
            await it.ended.acquire()
    assert (len(it.connections), len(it.requests)) == (4, 4)
    assert [kind for kind, _ in lines.audit] == ["egress.sent", "egress.received"] * 4


async def test_one_found_closed_by_the_courier_alone_has_sent_nothing(tmp_path: Path) -> None:
    async with provider() as it, Courier(tmp_path) as courier, client(it.url, courier) as http:
        assert await courier.is_ready()
        assert await ask(it, http, 0) == b"hello"
        (tape,) = found(tmp_path)
        os.kill(tape.pid, signal.SIGSTOP)
        it.hang_up()  # we are not told of it
        asking = asyncio.create_task(ask(it, http, 1))
        await it.ended.acquire()
        os.kill(tape.pid, signal.SIGCONT)
        assert await asking == b"hello"
    assert (len(it.connections), len(it.requests)) == (2, 2)


async def test_one_that_nobody_uses_is_closed(tmp_path: Path) -> None:
    async with (
        provider() as it,
        Courier(tmp_path, idle_s=0.1) as courier,
        client(it.url, courier) as http,
    ):
        assert await courier.is_ready()
        assert await ask(it, http, 0) == b"hello"
        async with asyncio.timeout(60):
            await it.ended.acquire()
        assert await ask(it, http, 1) == b"hello"
    assert len(it.connections) == 2


async def test_air_gap_closes_them_and_a_dead_daemon_leaves_none(tmp_path: Path) -> None:
    async with provider() as it:
        dead = Courier(tmp_path)
        await dead.__aenter__()
        assert await dead.is_ready()
        http = client(it.url, dead)
        await ask(it, http, 0)
        await dead.cut()
        async with asyncio.timeout(60):
            await it.ended.acquire()
        assert await dead.is_ready()
        await ask(it, http, 1)
        assert dead._control is not None and dead._process is not None
        dead._control.close()  # as the kernel closes what a killed process held
        await http.aclose()
        async with asyncio.timeout(60):
            await it.ended.acquire()
            assert await dead._process.wait() == 0
