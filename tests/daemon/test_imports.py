"""What a daemon imports before anybody asks it anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import running, write_home

HEAVY = (
    "anthropic", "h11", "httpcore2", "httpx2", "jinja2", "jsonschema",
    "lancedb", "llama_cpp", "llguidance", "mcp", "numpy", "referencing", "rich", "tomlkit",
    "torch", "typer",
)  # fmt: skip
"""What only some turns or only other commands need."""


def test_a_daemon_starts_without_the_libraries_that_only_some_turns_need() -> None:
    code = f"import sys, appliance.daemon.app; print([n for n in {HEAVY!r} if n in sys.modules])"
    assert told_by(code) == "[]"


@pytest.mark.parametrize("command", [["serve"], ["--home", "{home}", "serve"]])
def test_serve_goes_past_the_library_of_the_command_line(
    command: list[str], tmp_path: Path
) -> None:
    """Both ways to write it; here it ends at a bad configuration, after all imports."""
    write_home(tmp_path, [], "nonsense = 1")
    words = ["appliance", *(word.format(home=tmp_path) for word in command)]
    code = (
        "import sys\n"
        "import appliance.cli.main as main, appliance.cli.serving as serving\n"
        "before = serving.run_daemon\n"
        "def seen(home):\n"
        "    try: before(home)\n"
        f"    finally: print([n for n in {HEAVY!r} if n in sys.modules])\n"
        "serving.run_daemon = seen\n"
        f"sys.argv = {words!r}\n"
        "main.main()\n"
    )
    ended = run(code, APPLIANCE_HOME=str(tmp_path))
    assert ended.stdout.strip() == "[]", ended.stderr
    assert ended.returncode == 2
    assert "nonsense" in ended.stderr


def test_the_server_trusts_no_certificates_and_egress_trusts_those_of_the_system() -> None:
    code = (
        "from appliance.cli.imports import frugal\n"
        "with frugal():\n"
        "    import aiohttp.connector as connector\n"
        "import os, ssl\n"
        "assert not connector._SSL_CONTEXT_VERIFIED.get_ca_certs()\n"
        "assert connector._SSL_CONTEXT_VERIFIED.verify_mode is ssl.CERT_REQUIRED\n"
        "assert os.environ['SSL_CERT_FILE'] == 'mine.pem' and 'SSL_CERT_DIR' not in os.environ\n"
        "print('fine')"
    )
    assert run(code, SSL_CERT_FILE="mine.pem").stdout.strip() == "fine"


@pytest.mark.parametrize(
    ("network", "key", "is_imported"),
    [("", "k", True), ("", "", False), ("air_gap = true", "k", False)],
)
def test_the_library_of_claude_is_imported_ahead_only_where_claude_can_be_asked(
    network: str, key: str, is_imported: bool
) -> None:
    text = (
        f"[network]\n{network}\n[models.c]\nengine = 'claude'\nmodel = 'c'\n"
        "key_env = 'KEY'\n[models.m]\nengine = 'scripted'\nscript = 's.json'\n"
        "[agents.a]\nmodels = ['m']\n"
    )
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from appliance.clock import SystemClock\n"
        "from appliance.config.load import parse\n"
        "from appliance.daemon.engines import Engines\n"
        "from appliance.egress.door import Egress\n"
        f"config = parse({text!r}, Path('config.toml'))\n"
        "door = Egress(lambda: config, None, SystemClock())\n"
        "Engines(lambda: config, None, {}, door, None, None).import_ahead()\n"
        "print('anthropic' in sys.modules)\n"
    )
    assert told_by(code, KEY=key) == str(is_imported)


async def test_the_description_of_the_api_is_there_when_it_is_asked_for(tmp_path: Path) -> None:
    async with running(write_home(tmp_path, [])) as daemon:
        first: Any = await daemon.get("/api/openapi.json")
        assert await daemon.get("/api/openapi.json") == first
        assert "/api/turns" in first["paths"]


def told_by(code: str, **environment: str) -> str:
    ended = run(code, **environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=60, env=environment,
    )  # fmt: skip
