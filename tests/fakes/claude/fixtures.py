"""Fixtures for whoever needs the stand-in: import them into a `conftest.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.fakes.claude.running import Claude, claude_process, talking_to


@pytest.fixture(scope="session")
def claude_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with claude_process(tmp_path_factory.mktemp("claude")) as url:
        yield url


@pytest.fixture
async def claude(claude_url: str, tmp_path: Path) -> AsyncIterator[Claude]:
    """The stand-in with a clean slate."""
    async with talking_to(claude_url, tmp_path / "claude-requests.log") as server:
        yield server
