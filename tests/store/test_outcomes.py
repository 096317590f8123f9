"""Learned parameters: the newest is read back, and old versions do not pile up."""

from __future__ import annotations

import pytest

from appliance.errors import Conflict
from appliance.store.database import Database
from appliance.store.outcomes import VERSIONS_KEPT, Outcomes, ParametersRow


async def test_the_newest_parameters_are_read_and_only_the_last_versions_stay(
    database: Database,
) -> None:
    for version in range(1, 3 * VERSIONS_KEPT):
        for name in ("router", "other"):
            row = ParametersRow(name, version, 0, f"{name} {version}".encode())
            await database.write(row.write)
    newest = await Outcomes(database).parameters("router")
    assert newest is not None
    assert newest.payload == f"router {3 * VERSIONS_KEPT - 1}".encode()
    counted = await database.read(
        lambda connection: connection.execute(
            "SELECT name, count(*) FROM parameters GROUP BY name ORDER BY name"
        ).fetchall()
    )
    assert [tuple(row) for row in counted] == [("other", VERSIONS_KEPT), ("router", VERSIONS_KEPT)]
    with pytest.raises(Conflict):
        await database.write(newest.write)
