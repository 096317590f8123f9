"""Runs the stand-in OpenAI server for a test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]


@contextmanager
def stand_in(*arguments: str) -> Iterator[str]:
    """Its root URL, without `/v1`, while it runs."""
    argv = [sys.executable, "-m", "tests.fakes.openai.server", *arguments]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert child.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(child.stdout.readline())}"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
