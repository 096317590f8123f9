"""What a local answer shows of itself once it is there: votes of other samples, and its shape.

The strongest sign of a wrong answer that needs no second reader is disagreement: other samples, or
other local models, that say something else, the more so when they agree with each other. Next come
the answer's length (a small model that is lost writes on) and whether it has an answer at all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from appliance.router.features import Floats

ANSWER_NAMES = (
    "agree", "rival", "margin", "distinct", "missing", "first_agrees", "second_agrees",
    "third_agrees", "has_votes", "all_agree", "log_chars", "chars_for_prompt", "is_short",
    "is_empty", "answer_chars", "is_number", "is_fraction", "is_negative", "magnitude",
    "in_prompt", "is_round", "letter", "option_length", "is_last_option", "is_catch_all",
)  # fmt: skip
ANSWER_SIZE = len(ANSWER_NAMES)

_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_IN_TEXT = re.compile(r"\d[\d,]*(?:\.\d+)?")
_OPTION_LINE = re.compile(r"\n(?=[A-Z]\. )")
_CATCH_ALL = re.compile(r"\b(all|none|both|neither|cannot)\b")


@dataclass(frozen=True, slots=True)
class LocalAnswer:
    """A local answer beside what else was answered. `others` are final answers of further samples
    or other local models, the most reliable first, empty where one gave none; `weights` is how
    far each is trusted, or none for all alike."""

    prompt: str
    answer: str
    output_chars: int
    others: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()


def plain(answer: str) -> str:
    """The answer without what does not change it: case, spaces, currency, thousands' commas."""
    short = answer.strip().lower()
    for mark in ("$", ",", " ", "\\", "%"):
        short = short.replace(mark, "")
    short = short.rstrip(".")
    if _NUMBER.fullmatch(short) and len(short) < 16:
        return repr(round(float(short), 6))
    return short


def read_answer(local: LocalAnswer) -> Floats:
    """(ANSWER_SIZE,) numbers in the order of `ANSWER_NAMES`."""
    answer = plain(local.answer)
    others = [plain(each) for each in local.others]
    values = [*_votes(answer, others, local.weights), *_length(local, answer)]
    return np.array(values + _content(local, answer), np.float32)


def _votes(answer: str, others: Sequence[str], weights: Sequence[float]) -> list[float]:
    if not others:
        return [0.5, 0.0, 0.5, 0.0, 0.0, 0.5, 0.5, 0.5, 0.0, 0.0]
    trust = list(weights) or [1.0] * len(others)
    total = sum(trust)
    tally: dict[str, float] = {}
    for vote, weight in zip(others, trust, strict=True):
        if vote:
            tally[vote] = tally.get(vote, 0.0) + weight
    agree = tally.pop(answer, 0.0) / total if answer else 0.0
    rival = max(tally.values(), default=0.0) / total
    singly = [float(vote == answer and bool(answer)) for vote in others[:3]]
    singly += [agree] * (3 - len(singly))
    distinct = len({vote for vote in others if vote} | {answer}) / (len(others) + 1)
    missing = sum(not vote for vote in others) / len(others)
    return [agree, rival, agree - rival, distinct, missing, *singly, 1.0, float(min(singly) > 0.99)]


def _length(local: LocalAnswer, answer: str) -> list[float]:
    chars = float(np.log1p(local.output_chars))
    return [
        chars,
        chars - float(np.log1p(len(local.prompt))),
        float(local.output_chars < 30),
        float(not answer),
        float(np.log1p(len(answer))),
    ]


def _content(local: LocalAnswer, answer: str) -> list[float]:
    is_number = _NUMBER.fullmatch(answer) is not None
    value = float(answer) if is_number else 0.0
    in_prompt = is_number and answer in {plain(each) for each in _IN_TEXT.findall(local.prompt)}
    options = [each.lower() for each in _OPTION_LINE.split(local.prompt)[1:]]
    letter = ord(answer) - 96 if len(answer) == 1 and "a" <= answer <= "z" else 0
    chosen = options[letter - 1] if 0 < letter <= len(options) else None
    relative = 0.0
    if chosen is not None:
        relative = float(np.log1p(len(chosen)) - np.mean([np.log1p(len(each)) for each in options]))
    return [
        float(is_number),
        float(is_number and value != round(value)),
        float(value < 0),
        float(np.log1p(abs(value))),
        float(in_prompt),
        float(value > 1e4 and value % 100 == 0),
        letter / 10,
        relative,
        float(chosen is not None and letter == len(options)),
        float(chosen is not None and _CATCH_ALL.search(chosen) is not None),
    ]
