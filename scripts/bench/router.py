"""The router's bench: how well it orders work, what that saves, how fast it decides and learns.

    router.py report --data DIR [--json] [--quick]
    router.py score --train DIR --labels N --data FILE.csv.gz --stage before|after --out scores.csv
    router.py prior --data DIR --out FILE.npz

`report` is the default. APGR and CPT are those of arXiv 2406.18665. Every figure is on rows whose
questions (or whole subjects, or whole sets) were left out of learning.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import json
import os
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from router_lib import metrics, offline, online, simulate  # noqa: E402
from router_lib.data import Outcomes, load, load_all  # noqa: E402

PUBLISHED = {
    "rl_mmlu": {"RouteLLM best (SW ranking)": 0.603, "TF-IDF, own 1,500 labels": 0.646},
    "rl_gsm8k": {"RouteLLM best (causal LLM 8B)": 0.622},
}
"""arXiv 2406.18665, tables 1 to 3; GPT-4-1106 against Mixtral-8x7B on the same questions."""

FOLDS = 5
MMLU_LABELS = 1_500


def main() -> int:
    args = _arguments()
    if args.mode == "score":
        return _score(args)
    if args.mode == "prior":
        prior = online.fitted_prior(load_all(args.data))
        args.out.write_bytes(prior.to_bytes())
        print(f"{args.out}: {args.out.stat().st_size} bytes, version {prior.version}")
        return 0
    return _report(args)


def _score(args: argparse.Namespace) -> int:
    data = load(args.data)
    scored = [] if data is None else zip(data.ids, _scores(data, args), strict=True)
    with args.out.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(("query_id", "score"))
        writer.writerows((key, f"{value:.6f}") for key, value in scored)
    return 0


def _scores(data: Outcomes, args: argparse.Namespace) -> np.ndarray:
    train = load_all(args.train)
    data = replace(data, name=_family(data, train))
    rows = [_allowed(each, data, args.labels) for each in train]
    return offline.score(train, rows, data, args.stage)


def _family(data: Outcomes, train: list[Outcomes]) -> str:
    """The taught set whose name its own begins with (`rl_mmlu_new`), else its own."""
    kin = [each.name for each in train if data.name.startswith(each.name)]
    return max(kin, key=len, default=data.name)


def _allowed(each: Outcomes, data: Outcomes, labels: int | None) -> np.ndarray:
    """Rows of a set whose marks may be used: none that ask a question of the data, and of the same
    family at most `labels`, those marked `gold1500` first."""
    asked = set(data.stems)
    free = np.flatnonzero([stem not in asked for stem in each.stems])
    if labels is None or len(free) <= labels or each.name != data.name:
        return free
    mixed = np.random.default_rng(0).permutation(free)
    return np.sort(mixed[np.argsort(~each.gold[mixed], kind="stable")][:labels])


def _out_of_fold(
    data: Outcomes, fold: np.ndarray, stage: str, labels: int | None = None
) -> np.ndarray:
    scores = np.zeros(len(data))
    for k in sorted(set(fold)):
        rows = np.flatnonzero(fold != k)
        if labels is not None:
            rows = np.random.default_rng(int(k)).permutation(rows)[:labels]
        held = fold == k
        scores[held] = offline.score([data], [rows], data, stage)[held]
    return scores


def _figures(data: Outcomes, scores: np.ndarray) -> dict[str, float]:
    return metrics.figures(scores, data.weak, data.strong)


def _left_out(sets: list[Outcomes], data: Outcomes, stage: str) -> dict[str, float]:
    """Taught by the other sets alone, without any that shares its questions."""
    asked = set(data.stems)
    others = [each for each in sets if each.name != data.name]
    rows = [np.flatnonzero([stem not in asked for stem in each.stems]) for each in others]
    return _figures(data, offline.score(others, rows, data, stage))


def _report(args: argparse.Namespace) -> int:
    sets = load_all(args.data)
    found: dict[str, dict[str, float]] = {}
    held: dict[str, dict[str, np.ndarray]] = {}
    for data in sets:
        fold = data.fold(FOLDS)
        stages = [offline.Stage.BEFORE] + [offline.Stage.AFTER] * bool(data.answers.size)
        held[data.name] = {}
        for stage in stages:
            cap = MMLU_LABELS if data.name == "rl_mmlu" else None
            own = _out_of_fold(data, fold, stage, cap)
            held[data.name][stage] = own
            found[f"{stage} {data.name} own"] = _figures(data, own)
            found[f"{stage} {data.name} other_sets"] = _left_out(sets, data, stage)
            if len(set(data.groups)) >= FOLDS:
                grouped = _out_of_fold(data, data.group_fold(FOLDS), stage, cap)
                found[f"{stage} {data.name} new_groups"] = _figures(data, grouped)
        if data.gold.any():
            rest = ~data.gold
            gold = offline.score([data], [np.flatnonzero(data.gold)], data, offline.Stage.BEFORE)
            found[f"before {data.name} gold1500"] = metrics.figures(
                gold[rest], data.weak[rest], data.strong[rest]
            )
        length = np.array([float(len(prompt)) for prompt in data.prompts])
        found[f"baseline {data.name} prompt_length"] = _figures(data, length)
        if data.answers.size and data.answers[:, 8].any():
            found[f"baseline {data.name} disagreement"] = _figures(data, -data.answers[:, 0])
    _print_table(found)
    flat = {
        f"{key.replace(' ', '_')}_{name}": value
        for key, row in found.items()
        for name, value in row.items()
    }
    flat |= _learning(sets)
    flat |= online.learning(sets, passes=1 if args.quick else 8)
    flat |= online.learning_after(sets, passes=1)
    flat |= _saving(sets, held)
    flat |= online.latency(1_000 if args.quick else 5_000)
    for name, value in flat.items():
        if name.split("_")[0] in ("curve", "online", "saving", "decision", "calibration"):
            print(f"{name:44} {value}")
    if args.json:
        flat |= {
            "command": " ".join(["router.py", *sys.argv[1:]]),
            "versions": f"python {platform.python_version()}, "
            f"numpy {importlib.metadata.version('numpy')}",
            "load_average": os.getloadavg()[0],
            "seconds": round(time.perf_counter() - args.started, 1),
        }
        print(json.dumps(flat))
    return 0


def _learning(sets: list[Outcomes]) -> dict[str, float]:
    """APGR on held-out questions by the number of the set's own labels, before generation."""
    found = {}
    for name in ("rl_mmlu", "bfcl"):
        data = next((each for each in sets if each.name == name), None)
        if data is None:
            continue
        for labels in (200, 400, 800, 1_500):
            if labels < 0.8 * len(data):
                scores = _out_of_fold(data, data.fold(FOLDS), offline.Stage.BEFORE, labels)
                value = metrics.ranked(scores, data.weak, data.strong)
                found[f"curve_{name}_{labels}"] = round(value, 4)
    return found


def _saving(sets: list[Outcomes], held: dict[str, dict[str, np.ndarray]]) -> dict[str, float]:
    """Cost saved at 95 % of cloud quality over simulated tasks, beside simpler ways."""
    kinds = []
    for data in sets:
        scores = held[data.name]
        before = _calibrated(scores[offline.Stage.BEFORE], data)
        after = scores.get(offline.Stage.AFTER)
        kinds.append(
            simulate.Kind(
                data.weak,
                data.strong,
                before,
                _calibrated(after, data) if after is not None else before,
            )
        )
    cloud = simulate.walk(kinds, simulate.always(simulate.Place.CLOUD))
    local = simulate.walk(kinds, simulate.always(simulate.Place.LOCAL))
    ways = {
        "random": [simulate.at_random(share) for share in np.linspace(0, 1, 21)],
        "threshold": [simulate.above(at) for at in np.linspace(-0.2, 0.6, 33)],
        "ours": [simulate.ours(int(10**power)) for power in np.linspace(3, 7, 33)],
    }
    found = {
        "saving_cloud_quality": round(cloud.quality, 4),
        "saving_local_quality": round(local.quality, 4),
        "saving_cloud_usd": round(cloud.spend_micro_usd / 1e6, 3),
    }
    for name, choosers in ways.items():
        best, _ = simulate.cheapest_at(kinds, choosers, 0.95 * cloud.quality)
        saved = 0.0 if best is None else 1 - best.spend_micro_usd / cloud.spend_micro_usd
        found[f"saving_{name}_percent"] = round(100 * saved, 1)
        if best is not None:
            found[f"saving_{name}_local_percent"] = round(100 * best.local_share, 1)
    return found


def _calibrated(scores: np.ndarray, data: Outcomes) -> np.ndarray:
    """Scores as expected gains: a line through the other half's outcomes, for each half."""
    half = data.fold(2, seed=1)
    out = np.zeros(len(scores))
    for k in (0, 1):
        slope, level = np.polyfit(scores[half != k], data.gain[half != k], 1)
        out[half == k] = level + max(0.0, slope) * scores[half == k]
    return out


def _print_table(found: dict[str, dict[str, float]]) -> None:
    print(f"{'stage, set, split':44} {'APGR':>7} {'95 % interval':>16} {'CPT50':>7} {'CPT80':>7}")
    for key, row in sorted(found.items()):
        span = f"{row['low']:.3f} {row['high']:.3f}"
        print(f"{key:44} {row['apgr']:7.3f} {span:>16} {row['cpt50']:7.1f} {row['cpt80']:7.1f}")
    for name, published in PUBLISHED.items():
        for router, value in published.items():
            print(f"{'published ' + name + ', ' + router:44} {value:7.3f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.set_defaults(started=time.perf_counter())
    parser.add_argument("mode", nargs="?", default="report", choices=["report", "score", "prior"])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "routing-data")
    parser.add_argument("--train", type=Path, help="folder of sets to learn from (score)")
    parser.add_argument("--labels", type=int, help="most labels of the same family (score)")
    parser.add_argument("--stage", choices=["before", "after"], default="before")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true", help="last line: all figures as JSON")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    args = parser.parse_args()
    if args.mode == "score" and (args.train is None or args.out is None):
        parser.error("score needs --train and --out")
    if args.mode == "prior" and args.out is None:
        parser.error("prior needs --out")
    return args


if __name__ == "__main__":
    raise SystemExit(main())
