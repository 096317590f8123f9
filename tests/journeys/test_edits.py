"""Edits through the real file watch, under load; the long version is scripts/bench/edits.py."""

from __future__ import annotations

from pathlib import Path

from tests.journeys.editing import edit_under_load


async def test_edits_of_the_file_under_load_drop_double_and_mix_nothing(tmp_path: Path) -> None:
    found = await edit_under_load(tmp_path, edits=25, seed=1)
    assert (found.dropped, found.doubled, found.mixed) == (0, 0, 0)
    assert found.turns > 25, "they worked all the while"
    assert found.broken_edits > 0
    assert len(found.visible_ms) + found.broken_edits == found.edits == 25
