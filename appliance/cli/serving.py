"""The daemon in the foreground, as the command line starts it."""

from __future__ import annotations

import os
from pathlib import Path

from appliance.cli.imports import frugal


def run_daemon(home: Path | None) -> None:
    """Returns when it has ended. Raises `ApplianceError` where it cannot start."""
    with frugal():
        from appliance.config.paths import find_paths
        from appliance.daemon.serve import serve

    serve(find_paths(home, os.environ))
