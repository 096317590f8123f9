"""Files of models that wait for a place are read into the page cache, if RAM has the room."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from appliance.daemon.read_ahead import read_ahead


async def test_a_models_files_are_advised_whole_and_missing_ones_are_passed_over(
    tmp_path: Path,
) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(os.urandom(8 * mmap.PAGESIZE))
    missing, folder = tmp_path / "b.gguf", tmp_path
    assert await read_ahead([file, missing, folder]) == 8 * mmap.PAGESIZE


async def test_what_would_push_itself_out_of_ram_again_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(bytes(1000))
    assert await read_ahead([file], lambda: 999) == 0
    assert await read_ahead([file], lambda: 1000) == 1000
