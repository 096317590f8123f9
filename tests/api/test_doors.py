"""The doors under bad manners: bodies, headers, hosts, roles, half requests, foreign files."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from appliance.api.listen import GuardedServer, bind_unix
from appliance.api.peer import Role, role_of
from appliance.api.server import problem_response
from appliance.config.machine import AccessConfig
from tests.daemons import SCRIPTED_CONFIG, Daemon, cli, running, write_home


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


async def raw(daemon: Daemon, data: bytes, wait_s: float = 60.0) -> bytes:
    """Send bytes as they are; what comes back until the server closes."""
    reader, writer = await asyncio.open_unix_connection(str(daemon.socket))
    writer.write(data)
    await writer.drain()
    try:
        return await asyncio.wait_for(reader.read(), wait_s)
    finally:
        writer.close()


async def test_problems_are_json_with_a_code_and_a_hint(tmp_path: Path) -> None:
    async with running(write_home(tmp_path, [{"reply": "ok"}])) as daemon:
        for method, path, body, status, code in [
            ("GET", "/api/turns/turn_none", None, 404, "not_found"),
            ("GET", "/nowhere", None, 404, "not_found"),
            ("DELETE", "/api/status", None, 405, "method_not_allowed"),
            ("POST", "/api/turns", {"agent": "nobody", "text": "x"}, 404, "not_found"),
            ("POST", "/api/turns", {"agent": "assistant"}, 400, "bad_request"),
            ("POST", "/api/turns", {"agent": "assistant", "text": " "}, 400, "bad_request"),
            ("POST", "/api/turns", {"agent": "assistant", "text": "x", "y": 1}, 400, "bad_request"),
            ("POST", "/api/sessions/ses_none/turns", {"text": "x"}, 404, "not_found"),
        ]:
            async with daemon.session.request(method, path, json=body) as response:
                problem = await response.json()
                assert (response.status, problem["code"]) == (status, code), problem
                assert response.content_type == "application/problem+json"
                assert problem["detail"]


async def test_a_body_too_large_too_deep_or_not_json_is_refused_and_the_daemon_serves(
    tmp_path: Path,
) -> None:
    config = '[daemon]\nbody_max_bytes = "1MiB"\n' + SCRIPTED_CONFIG
    async with running(write_home(tmp_path, [{"reply": "ok"}], config)) as daemon:
        async with daemon.session.post(
            "/api/turns", data=b"x" * (10 << 20), headers={"Content-Type": "application/json"}
        ) as response:
            assert response.status == 413
        deep = b'{"agent":"assistant","message":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001
        for content in (deep[: 1 << 20], b"{nonsense", b"[1,2]", b'"text"'):
            async with daemon.session.post(
                "/api/turns", data=content, headers={"Content-Type": "application/json"}
            ) as response:
                assert response.status == 400, await response.text()
        async with daemon.session.post("/api/turns", data=b"agent=assistant") as response:
            assert response.status == 400
        claimed = b"POST /api/turns HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        claimed += b"Content-Length: 99999999999\r\n\r\n{"
        assert b" 413 " in (await raw(daemon, claimed)).splitlines()[0]
        assert (await daemon.ask("still there?"))["text"] == "ok"


async def test_a_half_sent_header_is_cut_off_and_others_are_served_meanwhile(
    tmp_path: Path,
) -> None:
    async with running(write_home(tmp_path, [{"reply": "ok"}])) as daemon:
        half = asyncio.create_task(raw(daemon, b"GET /api/status HTTP/1.1\r\nHost: x\r\nX-Sl"))
        assert (await daemon.ask("hello"))["text"] == "ok"
        assert await half == b""


async def test_a_socket_that_somebody_removed_is_bound_again(tmp_path: Path) -> None:
    async with running(write_home(tmp_path, [{"reply": "ok"}])) as daemon:
        daemon.socket.unlink()
        async with asyncio.timeout(60):
            while not daemon.socket.exists():
                await asyncio.sleep(0.05)
        code, out, err = await cli(daemon.home, "ask", "assistant", "hello")
        assert (code, out.strip()) == (0, "ok"), err
        assert "bound again" in daemon.log
    assert not daemon.socket.exists()


async def test_a_connection_too_many_is_told_so_and_a_place_freed_is_a_place(
    tmp_path: Path,
) -> None:
    async def hello(request: web.BaseRequest) -> web.Response:
        return web.Response(text="hello")

    path = tmp_path / "s"
    runner = web.ServerRunner(
        GuardedServer(hello, refuse=problem_response, connections_max=2)
    )  # fmt: skip
    await runner.setup()
    await web.SockSite(runner, bind_unix(path)).start()
    try:
        held = [await asyncio.open_unix_connection(str(path)) for _ in range(2)]
        reader, writer = await asyncio.open_unix_connection(str(path))
        refused = await reader.read()
        writer.close()
        assert refused.startswith(b"HTTP/1.1 429 ") and b"Retry-After: 1\r\n" in refused
        assert json.loads(refused.partition(b"\r\n\r\n")[2])["code"] == "overloaded"
        held[0][1].close()
        async with asyncio.timeout(30):
            answer = b""
            while b"hello" not in answer:
                reader, writer = await asyncio.open_unix_connection(str(path))
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answer = await reader.read()
                writer.close()
        held[1][1].close()
    finally:
        await runner.cleanup()


async def test_the_tcp_side_wants_a_token_a_known_host_and_no_foreign_origin(
    tmp_path: Path,
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = f'[daemon]\nhttp = "127.0.0.1:{port}"\n' + SCRIPTED_CONFIG
    async with running(write_home(tmp_path, [{"reply": "ok"}], config)) as daemon:
        token_file = daemon.home / "state" / "admin.token"
        assert token_file.stat().st_mode & 0o777 == 0o600
        bearer = {"Authorization": f"Bearer {token_file.read_text().strip()}"}
        url = f"http://127.0.0.1:{port}/api/status"
        async with aiohttp.ClientSession() as browser:
            for headers, status in [
                (bearer, 200),
                ({}, 401),
                ({"Authorization": "Bearer wrong"}, 401),
                ({**bearer, "Host": "evil.example"}, 421),
                ({**bearer, "Host": f"127.0.0.1.evil.example:{port}"}, 421),
                ({**bearer, "Origin": "http://evil.example"}, 421),
                ({**bearer, "Origin": "null"}, 421),
                ({**bearer, "Origin": f"http://127.0.0.1:{port}"}, 200),
                ({**bearer, "Sec-Fetch-Site": "cross-site"}, 421),
            ]:
                async with browser.get(url, headers=headers) as response:
                    assert response.status == status, (headers, await response.text())
            async with browser.get(f"http://127.0.0.1:{port}/healthz") as response:
                assert response.status == 200


async def test_openapi_describes_every_path_and_its_references_resolve(tmp_path: Path) -> None:
    async with running(write_home(tmp_path, [{"reply": "ok"}])) as daemon:
        document = await daemon.get("/api/openapi.json")
    assert {"/api/turns", "/api/sessions/{session}", "/api/config"} <= document["paths"].keys()
    known = set(document["components"]["schemas"])
    used = {part.split('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]}
    assert used <= known


async def test_a_second_daemon_and_a_file_in_the_sockets_place_are_refused(tmp_path: Path) -> None:
    async with running(write_home(tmp_path / "a", [{"reply": "ok"}])) as daemon:
        code, _, err = await cli(tmp_path / "a", "serve")
        assert code == 2
        assert str(daemon.process.pid) in err
        assert (await daemon.ask("hello"))["text"] == "ok"
    home = write_home(tmp_path / "b", [{"reply": "ok"}])
    (home / "run").mkdir()
    (home / "run" / "appliance.sock").write_text("mine")
    code, _, err = await cli(home, "serve")
    assert code == 2
    assert "not a socket" in err
    assert (home / "run" / "appliance.sock").read_text() == "mine"


async def test_the_socket_is_closed_to_others_by_mode(tmp_path: Path) -> None:
    async with running(write_home(tmp_path, [{"reply": "ok"}])) as daemon:
        assert daemon.socket.stat().st_mode & 0o777 == 0o660


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
async def test_an_unknown_user_is_refused_and_a_user_sees_only_their_own(open_folder: Path) -> None:
    config = SCRIPTED_CONFIG + "\n[access]\nusers = [12345]\n"
    home = write_home(open_folder, [{"reply": "ok"}], config)
    async with running(home) as daemon:
        turn = await daemon.start_turn("root's")
        (home / "run").chmod(0o755)
        daemon.socket.chmod(0o666)
        assert await _as_user(home, 12345, "/api/status") == 200
        assert await _as_user(home, 12345, f"/api/turns/{turn}") == 404
        assert await _as_user(home, 12345, "/api/config") == 403
        assert await _as_user(home, 54321, "/api/status") == 403


async def _as_user(home: Path, uid: int, path: str) -> int:
    process = await asyncio.create_subprocess_exec(
        "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}",
        "--unix-socket", str(home / "run" / "appliance.sock"), f"http://x{path}",
        stdout=asyncio.subprocess.PIPE, user=uid, group=uid, extra_groups=[],
    )  # fmt: skip
    out, _ = await process.communicate()
    return int(out)


def test_roles_are_ordered_and_nobody_is_the_default() -> None:
    access = AccessConfig(admins=(1001,), operators=(1002,), users=(1003, "@nosuchgroup"))
    assert [role_of(uid, (uid,), access) for uid in (0, 1001, 1002, 1003, 1004)] == [
        Role.ADMIN, Role.ADMIN, Role.OPERATOR, Role.USER, Role.NOBODY,
    ]  # fmt: skip
