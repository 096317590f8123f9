"""The tool lists that were seen and accepted, one small file per server.

The first list of a server that the operator configured is taken as meant. After that a change of
it has to be accepted by a person, because a server that turns bad does so after it is trusted.
The file keeps the list as well, so that an agent knows its tools before the server was started.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from appliance.types import Json


@dataclass(frozen=True, slots=True)
class Pin:
    """`digest` is that of all the server listed, `listing` what of it is sound."""

    digest: str
    listing: tuple[dict[str, Json], ...]


def load(folder: Path, server: str) -> Pin | None:
    """The accepted list; None where none is, or where the file cannot be understood (then the
    next list counts as the first)."""
    try:
        body = json.loads((folder / f"{server}.json").read_text())
        return Pin(str(body["digest"]), tuple(body["listing"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save(folder: Path, server: str, pin: Pin) -> None:
    """Durable when it returns."""
    draft = folder / f"{server}.json.new"
    with draft.open("w") as file:
        json.dump({"digest": pin.digest, "listing": pin.listing}, file)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(folder / f"{server}.json")
