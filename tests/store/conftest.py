"""A real database in a folder of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.clock import VirtualClock
from appliance.store.database import Database
from appliance.store.journal import Journal


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with Database(tmp_path) as opened:
        yield opened


@pytest.fixture
def journal(database: Database) -> Journal:
    return Journal(database, VirtualClock(1.0))
