"""The bench's measures are those of the paper, and its `score` writes one number a query."""

from __future__ import annotations

import csv
import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "scripts" / "bench"
DATA = ROOT.parent / "shared" / "routing-data"
sys.path.insert(0, str(BENCH))

from router_lib import metrics  # noqa: E402


def test_a_perfect_order_beats_chance_and_its_reverse_does_as_badly() -> None:
    draw = np.random.default_rng(0)
    weak = (draw.random(2_000) < 0.6).astype(float)
    strong = np.ones(2_000)
    assert metrics.apgr(1 - weak, weak, strong) > 0.7
    assert metrics.apgr(weak, weak, strong) < 0.3
    assert metrics.apgr(draw.random(2_000), weak, strong) == pytest.approx(0.5, abs=0.03)


@pytest.mark.skipif(
    not DATA.is_dir(), reason="the public routing data are not beside this checkout"
)
@pytest.mark.parametrize(
    ("name", "apgr", "cpt50", "cpt80"),
    [("rl_mmlu", 0.544, 44.84, 78.13), ("rl_gsm8k", 0.604, 33.42, 65.97)],
)
def test_prompt_length_measures_what_it_is_known_to(
    name: str, apgr: float, cpt50: float, cpt80: float
) -> None:
    with gzip.open(DATA / f"{name}.csv.gz", "rt", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    weak, strong = (np.array([float(row[key]) for row in rows]) for key in ("weak", "strong"))
    length = np.array([float(len(row["prompt"])) for row in rows])
    assert metrics.apgr(length, weak, strong) == pytest.approx(apgr, abs=0.001)
    assert metrics.cpt(length, weak, strong, 0.5) == pytest.approx(cpt50, abs=0.01)
    assert metrics.cpt(length, weak, strong, 0.8) == pytest.approx(cpt80, abs=0.01)


@pytest.mark.parametrize("stage", ["before", "after"])
def test_score_writes_a_number_for_every_query_of_an_unmarked_file(
    tmp_path: Path, stage: str
) -> None:
    train, data = tmp_path / "train", tmp_path / "new.csv.gz"
    train.mkdir()
    _write(train / "sums.csv.gz", count=60, marked=True)
    _write(data, count=20, marked=False)
    rows = _score(train, data, "--labels", "40", "--stage", stage)
    assert [row["query_id"] for row in rows] == [f"new/{i}" for i in range(20)]
    assert len({row["score"] for row in rows}) > 10


@pytest.mark.parametrize("stage", ["before", "after"])
@pytest.mark.parametrize("labels", ["0", "40"])
def test_score_holds_for_empty_cells_unknown_marks_and_sets_without_rows(
    tmp_path: Path, stage: str, labels: str
) -> None:
    train, data = tmp_path / "train", tmp_path / "new.csv.gz"
    train.mkdir()
    _table(train / "none.csv.gz", ["query_id", "prompt", "weak", "strong"])
    _table(
        train / "new.csv.gz",
        ["query_id", "prompt", "weak", "strong", "weak_answer", "acc_peer"],
        ["new/9", "Which one?", "", "1", "b", ""],
        ["new/8", "", "nan", "?", "", ""],
        ["new/7", "And then?", "1", "1", "a", ""],
    )
    nested = ["new/2", "So?\n\n[TOOLS]\n" + "[" * 50_000]
    _table(
        data, ["query_id", "prompt", "weak_answer"], ["new/0"], ["new/1", "Été ?", "oui"], nested
    )
    rows = _score(train, data, "--labels", labels, "--stage", stage)
    assert [row["query_id"] for row in rows] == ["new/0", "new/1", "new/2"]
    assert all(np.isfinite(float(row["score"])) for row in rows)


def test_score_reads_plain_files_and_finds_their_family_by_name(tmp_path: Path) -> None:
    train, data = tmp_path / "train", tmp_path / "sums_new.csv"
    train.mkdir()
    _write(train / "sums.csv", count=400, marked=True)
    _write(data, count=60, marked=True, keys=False)
    scores = np.array([float(row["score"]) for row in _score(train, data, "--labels", "300")])
    with data.open(newline="") as lines:
        weak = np.array([float(row["weak"]) for row in csv.DictReader(lines)])
    assert metrics.ranked(scores, weak, np.ones(60)) > 0.75


def test_score_of_a_file_without_rows_has_none(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    data = tmp_path / "none.csv.gz"
    _table(data, ["query_id", "prompt"])
    assert _score(tmp_path / "train", data) == []
    data.write_bytes(b"")
    assert _score(tmp_path / "train", data) == []


def test_marks_that_are_all_alike_leave_the_order_of_length(tmp_path: Path) -> None:
    train, data = tmp_path / "train", tmp_path / "new.csv.gz"
    train.mkdir()
    _table(
        train / "new.csv.gz",
        ["query_id", "prompt", "weak", "strong"],
        *(["new/" + str(i), "Which " * i, "1", "1"] for i in range(200)),
    )
    _table(data, ["query_id", "prompt"], *([f"new/{i}", "Why? " * i] for i in range(1, 9)))
    scores = [float(row["score"]) for row in _score(train, data)]
    assert scores == sorted(scores)
    assert len(set(scores)) == 8


def test_after_generation_the_length_of_the_answer_is_enough_to_read(tmp_path: Path) -> None:
    train, data = tmp_path / "train", tmp_path / "new.csv.gz"
    train.mkdir()
    columns = ["query_id", "prompt", "weak_out_chars"]
    rows = [[f"new/{i}", "Which one?", str(10 + i)] for i in range(200)]
    _table(
        train / "new.csv.gz",
        [*columns, "weak", "strong"],
        *([*row, str(float(i < 100)), "1"] for i, row in enumerate(rows)),
    )
    _table(data, columns, ["new/a", "So?", "15"], ["new/b", "So?", "205"], ["new/c", "So?", "-1"])
    short, long, _ = (float(row["score"]) for row in _score(train, data, "--stage", "after"))
    assert short < long


def _score(train: Path, data: Path, *options: str) -> list[dict[str, str]]:
    out = train.parent / "scores.csv"
    command = [sys.executable, str(BENCH / "router.py"), "score", "--train", str(train)]
    command += ["--data", str(data), "--out", str(out), *options]
    subprocess.run(command, check=True, timeout=60)
    with out.open(newline="") as lines:
        return list(csv.DictReader(lines))


def _table(path: Path, *rows: list[str]) -> None:
    with gzip.open(path, "wt", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows(rows)


def _write(path: Path, *, count: int, marked: bool, keys: bool = True) -> None:
    draw = np.random.default_rng(count)
    name = path.name.split(".")[0]
    packed = path.suffix == ".gz"
    with gzip.open(path, "wt", newline="") if packed else path.open("w", newline="") as out:
        columns = ["query_id", "group", "prompt", "weak_answer", "weak_out_chars", "ans_other"]
        writer = csv.DictWriter(out, columns + ["weak", "strong"] * marked)
        writer.writeheader()
        for i in range(count):
            terms = draw.integers(1, 99, draw.integers(2, 9))
            row = {
                "query_id": f"{name}/{i}" if keys else str(i),
                "group": name,
                "prompt": f"What is the sum of {', '.join(map(str, terms))}?",
                "weak_answer": str(terms.sum() + int(draw.integers(0, 2))),
                "weak_out_chars": str(20 * len(terms)),
                "ans_other": str(terms.sum()),
            }
            if marked:
                row |= {"weak": str(float(len(terms) < 5)), "strong": "1.0"}
            writer.writerow(row)
