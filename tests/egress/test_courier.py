"""The courier over real sockets: carried calls, their tapes, and what is left when we go."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from appliance.clock import SystemClock
from appliance.config.schema import Config
from appliance.egress.courier.courier import Courier
from appliance.egress.courier.replay import replayed
from appliance.egress.courier.tape import Tape, found
from appliance.egress.door import Egress
from appliance.egress.errand import Errand, on_errand
from appliance.egress.guard import Guard
from appliance.egress.rules import Purpose
from appliance.types import Label
from tests.engines.claude.rig import Lines, config_for

Answering = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
FIRST, LAST = b"5\r\nhello\r\n", b"6\r\n world\r\n0\r\n\r\n"
ERRAND = Errand(Label.PUBLIC, "a", "turn_1", "hold_1")


class Provider:
    """Answers half, and the rest when it is let."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.go_on = asyncio.Event()
        self.is_left = asyncio.Event()
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests.append(head + await reader.readexactly(4))
                writer.write(HEAD + FIRST)
                await writer.drain()
                gone = asyncio.ensure_future(reader.read(1))
                going = asyncio.ensure_future(self.go_on.wait())
                await asyncio.wait({gone, going}, return_when=asyncio.FIRST_COMPLETED)
                going.cancel()
                if gone.done():
                    break
                writer.write(LAST)
                await writer.drain()
                await gone
                break
        self.is_left.set()
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


def client(
    url: str, courier: Courier, lines: Lines | None = None, **network: str
) -> httpx2.AsyncClient:
    config: Config = config_for(url, network=network)
    egress = Egress(
        lambda: config, lines or Lines(), SystemClock(), environment={}, guard=Guard(),
        courier=courier,
    )  # fmt: skip
    return egress.client(Purpose("model", "claude"), read_timeout_s=20.0)


async def opened(
    it: Provider, http: httpx2.AsyncClient, errand: Errand = ERRAND
) -> httpx2.Response:
    headers = {"authorization": "Bearer sk-canary"}
    request = http.build_request("POST", f"{it.url}/v1", content=b"body", headers=headers)
    with on_errand(errand):
        return await http.send(request, stream=True)


async def rest_of(tape: Tape) -> bytes:
    return await (await replayed(tape)).aread()


async def test_an_answer_is_taped_as_it_passes_and_the_key_is_nowhere(tmp_path: Path) -> None:
    async with provider() as it, Courier(tmp_path) as courier:
        assert await courier.is_ready()
        async with client(it.url, courier) as http:
            response = await opened(it, http)
            pieces = response.aiter_raw()
            assert await anext(pieces) == b"hello"
            (path,) = tmp_path.iterdir()
            assert path.name == "hold_1.tape" and path.stat().st_mode & 0o777 == 0o600
            (tape,) = found(tmp_path)
            for told in ("cmdline", "environ"):
                assert b"canary" not in Path(f"/proc/{tape.pid}/{told}").read_bytes()
            it.go_on.set()
            assert await anext(pieces) == b" world"
            await response.aclose()
        assert b"canary" in it.requests[0] and b"canary" not in path.read_bytes()
        assert (tape.turn_id, tape.model) == ("turn_1", "claude")
        courier.forget("hold_1")
        assert path.exists(), "the step that takes the answer is not in the journal yet"
    assert not path.exists()


async def test_a_call_that_is_closed_here_is_closed_there(tmp_path: Path) -> None:
    async with provider() as it, Courier(tmp_path) as courier:
        assert await courier.is_ready()
        async with client(it.url, courier) as http:
            await (await opened(it, http)).aclose()
            async with asyncio.timeout(60):
                await it.is_left.wait()


async def test_when_the_daemon_dies_the_answer_is_heard_to_its_end_and_adopted_once(
    tmp_path: Path,
) -> None:
    async with provider() as it:
        dead = Courier(tmp_path)
        await dead.__aenter__()
        assert await dead.is_ready()
        http = client(it.url, dead)
        response = await opened(it, http)
        os.close(response.extensions["network_stream"].get_extra_info("socket").fileno())
        assert dead._control is not None
        dead._control.close()  # as the kernel closes what a killed process held
        lines = Lines()
        async with Courier(tmp_path) as courier, client(it.url, courier, lines) as again:
            assert await courier.is_ready()
            adopted = await opened(it, again, Errand(Label.PUBLIC, "a", "turn_1", "hold_2"))
            assert adopted.extensions["adopted"] == "hold_1"
            it.go_on.set()
            assert await adopted.aread() == b"hello world"
            await adopted.aclose()
            assert [kind for kind, _ in lines.audit] == ["egress.adopted", "egress.received"]
            assert len(it.requests) == 1
            left = courier.left("hold_1")
            assert left is not None and await rest_of(left) == b"hello world"
            assert courier.adopt("turn_1", left.match) is None
        assert dead._process is not None
        async with asyncio.timeout(60):
            await dead._process.wait()  # nothing left to carry: it has gone by itself


async def test_a_courier_that_is_ended_cuts_its_calls_and_the_next_call_has_a_new_one(
    tmp_path: Path,
) -> None:
    async with provider() as it, Courier(tmp_path) as courier, client(it.url, courier) as http:
        assert await courier.is_ready()
        response = await opened(it, http)
        (tape,) = found(tmp_path)
        await courier.cut()
        with pytest.raises(httpx2.RemoteProtocolError):
            await response.aread()
        with pytest.raises(httpx2.RemoteProtocolError):
            await rest_of(tape)
        with pytest.raises(httpx2.ConnectError):
            await opened(it, http, Errand(Label.PUBLIC, "a", "turn_1", "hold_2"))
        assert await courier.is_ready()
        it.go_on.set()
        third = await opened(it, http, Errand(Label.PUBLIC, "a", "turn_1", "hold_3"))
        assert await third.aread() == b"hello world"


async def test_a_stray_courier_is_ended_by_the_next_daemon(tmp_path: Path) -> None:
    async with provider() as it:
        dead = Courier(tmp_path)
        await dead.__aenter__()
        assert await dead.is_ready()
        await opened(it, client(it.url, dead))
        async with Courier(tmp_path) as courier:
            await courier.cut()
            assert dead._process is not None
            async with asyncio.timeout(60):
                assert await dead._process.wait() == 0
                await it.is_left.wait()


async def test_a_call_that_is_not_taped_goes_from_here(tmp_path: Path) -> None:
    async with provider() as it, Courier(tmp_path) as courier, client(it.url, courier) as http:
        it.go_on.set()
        response = await opened(it, http, Errand(Label.PUBLIC))
        assert await response.aread() == b"hello world"
        assert list(tmp_path.iterdir()) == []


async def test_tls_is_checked_by_the_courier(
    certificate: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    (tmp_path / "tapes").mkdir()
    async with provider(context) as it:
        it.go_on.set()
        async with Courier(tmp_path / "tapes") as courier, client(it.url, courier) as http:
            assert await courier.is_ready()
            with pytest.raises(httpx2.ConnectError):
                await opened(it, http)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        async with Courier(tmp_path / "tapes") as courier, client(it.url, courier) as http:
            assert await courier.is_ready()
            response = await opened(it, http, Errand(Label.PUBLIC, "a", "turn_1", "hold_2"))
            assert await response.aread() == b"hello world"
    assert len(it.requests) == 1


async def test_a_call_through_a_proxy_is_carried_too(
    certificate: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        port = int(asked[0].split()[1].rpartition(b":")[2])
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        await asyncio.gather(_pour(reader, far_writer), _pour(far_reader, writer))

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    (tmp_path / "tapes").mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with provider(context) as it, Courier(tmp_path / "tapes") as courier, server:
        it.go_on.set()
        assert await courier.is_ready()
        async with client(it.url, courier, proxy=address) as http:
            response = await opened(it, http)
            assert await response.aread() == b"hello world"
    assert asked == [f"CONNECT {it.url.removeprefix('https://')} HTTP/1.1".encode()]


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(1 << 16):
            writer.write(piece)
        writer.close()


async def test_a_courier_that_stands_still_is_not_waited_for(tmp_path: Path) -> None:
    async with provider() as it, Courier(tmp_path) as courier:
        assert await courier.is_ready()
        async with client(it.url, courier) as http:
            response = await opened(it, http)
            (tape,) = found(tmp_path)
            os.kill(tape.pid, signal.SIGSTOP)
            await response.aclose()
