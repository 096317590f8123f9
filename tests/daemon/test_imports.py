"""What a daemon imports before anybody asks it anything."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("anthropic", "lancedb", "llama_cpp", "llguidance", "mcp", "numpy", "rich.live", "torch")


def test_a_daemon_starts_without_the_libraries_that_only_some_turns_need() -> None:
    code = f"import sys, appliance.daemon.app; print([n for n in {HEAVY!r} if n in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == "[]"
