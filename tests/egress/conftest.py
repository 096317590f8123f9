"""The stand-in Claude server and a certificate for these tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.fakes.claude.fixtures import claude, claude_url

__all__ = ["claude", "claude_url"]


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """One for localhost that nobody has signed, and its key."""
    path, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", key, "-out", path, "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    return path, key
