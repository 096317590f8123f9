"""Memory estimates beside llama.cpp's own dry run, ours and the peers' formulae.

    python scripts/bench/estimate.py [--models N] [--json]

Writes each sketch (tests/gpu/sketches.py) as a sparse GGUF, asks the library's `no_alloc` dry run
for each setting, and prints one line per model and setting, or with --json the summary alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.gpu.comparison import PEERS, SETTINGS, Row, compare
from tests.gpu.sketches.catalogue import SKETCHES

MIB = 1 << 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=len(SKETCHES), help="only the first N")
    parser.add_argument("--json", action="store_true", help="print the summary alone")
    options = parser.parse_args()
    began = time.monotonic()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in list(SKETCHES)[: options.models]:
            fresh = compare(name, Path(folder), list(SETTINGS))
            rows += fresh
            if not options.json:
                for row in fresh:
                    print(_line(row))
    print(json.dumps(_summary(rows, time.monotonic() - began)))
    return 0


def _line(row: Row) -> str:
    peers = " ".join(f"{peer} {row.peer_error(peer):+8.1%}" for peer in PEERS)
    return (
        f"{row.model:18} {row.setting:34} real {row.real_total / MIB:10.1f} MiB  "
        f"ours {row.error:+7.2%}  {peers}"
    )


def _summary(rows: list[Row], took_s: float) -> dict[str, object]:
    def mean_pct(errors: list[float]) -> float:
        return round(100 * sum(map(abs, errors)) / len(errors), 3)

    ours = mean_pct([row.error for row in rows])
    peers = {peer: mean_pct([row.peer_error(peer) for row in rows]) for peer in PEERS}
    cached = [row for row in rows if row.real_cache > 32 * MIB]
    return {
        "models": len({row.model for row in rows}),
        "architectures": len({row.architecture for row in rows}),
        "settings": len({row.setting for row in rows}),
        "cases": len(rows),
        "cases_within_bounds": sum(row.is_within for row in rows),
        "weights_max_error_pct": round(
            100 * max(abs(row.our_weights / row.real_weights - 1) for row in rows), 4
        ),
        "kv_and_state_max_error_pct": round(
            100 * max(abs(row.our_cache / row.real_cache - 1) for row in cached), 4
        ),
        "mean_abs_error_pct": ours,
        "max_over_pct": round(100 * max(row.error for row in rows), 2),
        "max_under_pct": round(-100 * min(row.error for row in rows), 2),
        **{f"{peer}_mean_abs_error_pct": error for peer, error in peers.items()},
        "times_smaller_than_best_peer": round(min(peers.values()) / ours, 1),
        "took_s": round(took_s, 1),
        "command": "scripts/bench/estimate.py",
        "versions": f"llama-cpp-python {version('llama-cpp-python')}, Python "
        f"{platform.python_version()}",
        "load_average": os.getloadavg()[0],
    }


if __name__ == "__main__":
    sys.exit(main())
