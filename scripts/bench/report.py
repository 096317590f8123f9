"""How every benchmark ends: a table for people, and one flat JSON object as the last line."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = ("llama-cpp-python", "aiohttp", "anthropic", "pydantic")


def report(figures: dict[str, Any], *, as_json: bool) -> None:
    """Print the figures; the JSON line also names command, versions and load."""
    if not as_json:
        print()
        for name, value in figures.items():
            print(f"{name:28} {value}")
    around = {
        "command": " ".join(["scripts/bench/" + os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        "versions": versions(),
        "load_average": round(os.getloadavg()[0], 2),
    }
    print(json.dumps({**figures, **around}))


def versions() -> str:
    """The versions a figure depends on, as one string."""
    found = [f"python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
