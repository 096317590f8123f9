"""Outcome sets as arrays: texts, features, marks of both sides, and folds that split honestly."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from appliance.router.answers import LocalAnswer, read_answer
from appliance.router.features import TextFeatures, read
from appliance.router.said import plain
from appliance.router.tools import tool_shape
from appliance.router.types import bounded_text

csv.field_size_limit(1 << 30)
_STEM_END = re.compile(r"\nA\. |\n\n\[TOOLS\]")
_NOT_WORD = re.compile(r"[^a-z0-9]+")


@dataclass
class Outcomes:
    """One set. `answers` is empty where nothing of a local answer is known. `weak` and `strong`
    are NaN where the file does not say (a file to be scored need not)."""

    name: str
    ids: list[str]
    prompts: list[str]
    groups: np.ndarray
    stems: np.ndarray
    weak: np.ndarray
    strong: np.ndarray
    gold: np.ndarray
    shape: np.ndarray
    sketch: np.ndarray
    answers: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def gain(self) -> np.ndarray:
        return self.strong - self.weak

    def __len__(self) -> int:
        return len(self.ids)

    def fold(self, folds: int, seed: int = 0) -> np.ndarray:
        """A fold for each row; rows with the same question, in any set, share it."""
        return np.array([zlib.crc32(f"{seed}/{stem}".encode()) % folds for stem in self.stems])

    def group_fold(self, folds: int) -> np.ndarray:
        """A fold for each row; whole groups (subjects, categories) share it."""
        rank = {name: i % folds for i, name in enumerate(sorted(set(self.groups)))}
        return np.array([rank[name] for name in self.groups])


def load(path: Path) -> Outcomes | None:
    """A set from its file, None where that has no rows. A column that is missing reads as empty, a
    mark that is no number as unknown; a file that is no table is a ValueError."""
    rows = _rows(path)
    if not rows:
        return None
    features = [_read(row["prompt"]) for row in rows]
    return Outcomes(
        name=_family(rows[0]["query_id"], path),
        ids=[row["query_id"] for row in rows],
        prompts=[row["prompt"] for row in rows],
        groups=np.array([row.get("group", "") for row in rows]),
        stems=np.array([_stem(row["prompt"]) for row in rows]),
        weak=_numbers(rows, "weak"),
        strong=_numbers(rows, "strong"),
        gold=np.array([row.get("gold1500") == "1" for row in rows]),
        shape=np.stack([each.shape for each in features]).astype(np.float64),
        sketch=np.stack([each.sketch for each in features]).astype(np.float64),
        answers=_answers(rows),
    )


def _read(prompt: str) -> TextFeatures:
    """The request's features, bounded as a step's text is; tools follow it after a mark, one JSON
    object a line."""
    request, _, lines = prompt.partition("\n\n[TOOLS]\n")
    tools = [_tool(line) for line in lines.splitlines()]
    return read(bounded_text(request), tool_shape(each for each in tools if each is not None))


def _tool(line: str) -> tuple[str, dict[str, object]] | None:
    try:
        tool = json.loads(line)
        return str(tool.get("description", "")), dict(tool.get("parameters") or {})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def load_all(folder: Path) -> list[Outcomes]:
    """Every set of a folder that has rows."""
    paths = sorted({*folder.glob("*.csv.gz"), *folder.glob("*.csv")})
    found = [load(path) for path in paths]
    return [each for each in found if each is not None]


def _rows(path: Path) -> list[dict[str, str]]:
    """Its rows, whether it is compressed or not, and whatever its name says of that."""
    body = path.read_bytes()
    try:
        body = gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    lines = io.StringIO(body.decode("utf-8-sig", "replace"), newline="")
    return [
        {"query_id": str(i), "prompt": ""}
        | {name: value or "" for name, value in row.items() if name is not None}
        for i, row in enumerate(csv.DictReader(lines))
    ]


def _family(query_id: str, path: Path) -> str:
    """The set a query belongs to, as its key says (`rl_mmlu/anatomy/2`)."""
    return query_id.split("/")[0] if "/" in query_id else path.name.split(".")[0]


def _stem(prompt: str) -> str:
    question = _STEM_END.split(prompt)[0]
    return _NOT_WORD.sub(" ", question.lower()).strip()[:200]


def _numbers(rows: list[dict[str, str]], column: str) -> np.ndarray:
    return np.array([_number(row.get(column, "")) for row in rows])


def _number(text: str) -> float:
    """The finite number that a cell says, else NaN."""
    try:
        value = float(text)
    except ValueError:
        return np.nan
    return value if np.isfinite(value) else np.nan


def _count(text: str) -> int:
    value = _number(text)
    return int(value) if value > 0 else 0


def _answers(rows: list[dict[str, str]]) -> np.ndarray:
    columns = sorted(name for name in rows[0] if name.startswith("ans_"))
    if not columns and not {"weak_answer", "weak_out_chars"} & set(rows[0]):
        return np.zeros((0, 0))
    answers = [row.get("weak_answer", "") for row in rows]
    votes = [[plain(row[name]) for name in columns] for row in rows]
    own = [plain(answer) for answer in answers]
    trust = _trust(votes, own)
    order = sorted(range(len(columns)), key=lambda i: -trust[i])
    return np.stack(
        [
            read_answer(
                LocalAnswer(
                    prompt=row["prompt"],
                    answer=answer,
                    output_chars=_count(row.get("weak_out_chars", "")),
                    others=tuple(row[columns[i]] for i in order),
                    weights=tuple(trust[i] for i in order),
                )
            )
            for row, answer in zip(rows, answers, strict=True)
        ]
    ).astype(np.float64)


def _trust(votes: list[list[str]], own: list[str]) -> list[float]:
    """How often each other model agrees with the rest: known without any label."""
    n = len(votes[0])
    found = []
    for i in range(n):
        hits = [vote[i] == mine and vote[i] != "" for vote, mine in zip(votes, own, strict=True)]
        rest = [
            float(np.mean([vote[i] == vote[j] and vote[i] != "" for vote in votes]))
            for j in range(n)
            if j != i
        ]
        found.append(max(0.05, float(np.mean([float(np.mean(hits)), *rest]))))
    return found
