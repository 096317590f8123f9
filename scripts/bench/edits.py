"""Random edits of config.toml through the file watch of a real daemon, while agents work.

scripts/bench/edits.py [--edits 1000] [--seed 1] [--json]

One edit in ten is broken and must change nothing; the others are saved over the old text, in two
halves, or by renaming. `visible_ms` is from the first byte written to the API showing it, the
polling included. See tests/journeys/editing.py for what counts as dropped, doubled and mixed.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.bench.report import report
from tests.journeys.editing import edit_under_load


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="edits-"))
    try:
        found = asyncio.run(edit_under_load(home, options.edits, options.seed))
    finally:
        shutil.rmtree(home)
    shown = sorted(found.visible_ms)
    figures = {
        "edits": found.edits,
        "broken_edits": found.broken_edits,
        "turns": found.turns,
        "dropped": found.dropped,
        "doubled": found.doubled,
        "mixed": found.mixed,
        "visible_ms_p50": round(shown[len(shown) // 2], 1),
        "visible_ms_p99": round(shown[len(shown) * 99 // 100], 1),
        "visible_ms_max": round(shown[-1], 1),
    }
    report(figures, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
