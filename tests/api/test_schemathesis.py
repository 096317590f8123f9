"""The OpenAPI document against the daemon that serves it: random requests, every answer held."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

from tests.daemons import REPOSITORY, SCRIPTED_CONFIG, running, write_home

EXAMPLES = 6
"""Requests an operation and phase: what a default run can afford."""

WITHIN_S = 240.0
STREAM = "/api/turns/{turn}/events"


async def test_random_requests_get_no_server_error_and_answers_as_described(
    tmp_path: Path,
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = f'[daemon]\nhttp = "127.0.0.1:{port}"\n' + SCRIPTED_CONFIG
    async with running(write_home(tmp_path / "home", [{"reply": "ok"}], config)) as daemon:
        token = (daemon.home / "state" / "admin.token").read_text().strip()
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("schemathesis")), "run",
            f"http://127.0.0.1:{port}/api/openapi.json",
            "--header", f"Authorization: Bearer {token}",
            "--max-examples", str(EXAMPLES), "--phases", "examples,fuzzing", "--seed", "7",
            "--checks", "not_a_server_error,status_code_conformance,"
            "content_type_conformance,response_schema_conformance",
            "--exclude-path", STREAM, "--request-timeout", "60", "--no-color",
            "--generation-database", "none",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        out, _ = await asyncio.wait_for(process.communicate(), WITHIN_S)
        assert process.returncode == 0, out.decode()[-8000:]
        assert (await daemon.ask("still there?"))["text"] == "ok"
        assert "Traceback" not in daemon.log
