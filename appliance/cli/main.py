"""`appliance`: the console script.

`serve`, as the unit and people write it, goes past the library of the command line and all other
commands: they cost a daemon a sixth of its start, and memory for as long as it lives.
"""

from __future__ import annotations

import sys
from pathlib import Path

from appliance.cli.imports import frugal
from appliance.errors import ApplianceError


def main() -> None:
    match sys.argv[1:]:
        case ["serve"]:
            _serve(None)
        case ["--home", home, "serve"]:
            _serve(Path(home))
        case _:
            with frugal():
                from appliance.cli.commands import app
            app()


def _serve(home: Path | None) -> None:
    from appliance.cli.serving import run_daemon

    try:
        run_daemon(home)
    except ApplianceError as error:
        from appliance.cli.shared import say

        sys.exit(say(error))


if __name__ == "__main__":
    main()
