"""What a local answer shows of itself once it is there: votes, length, form, place, tone.

The strongest sign of a wrong answer that needs no second reader is disagreement: other samples, or
other local models, that say something else, the more so when they agree with each other. Next come
the answer's length (a small model that is lost writes on), whether it has an answer at all, where
it stands among the options it was chosen from, how sure its tokens were and how it sounds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from appliance.router.said import NUMBER, plain
from appliance.router.words import Floats

ANSWER_NAMES = (
    "agree", "rival", "margin", "distinct", "missing", "first_agrees", "second_agrees",
    "third_agrees", "has_votes", "all_agree", "log_chars", "chars_for_prompt", "is_short",
    "is_empty", "answer_chars", "is_number", "is_fraction", "is_negative", "magnitude",
    "in_prompt", "is_round", "letter", "option_length", "is_last_option", "is_catch_all",
    "options", "options_of_numbers", "is_extreme", "like_first", "like_second", "others_alike",
    "is_central", "asked_about", "distance", "others_agree", "first_missing", "second_missing",
    "logprob", "least_logprob", "has_logprobs", "is_call", "hedges", "repeats",
)  # fmt: skip
ANSWER_SIZE = len(ANSWER_NAMES)
FAMILIES = {
    "other answers": (0, 10),
    "length": (10, 15),
    "form": (15, 25),
    "place among the options": (25, 37),
    "log-probabilities": (37, 40),
    "tone": (40, 43),
}
"""What `ANSWER_NAMES` tell of, by their range, in words for `explain`."""

USUAL_LOGPROB, USUAL_LEAST_LOGPROB = -0.4, -4.0
"""What stands for log-probabilities that are not known."""

_IN_TEXT = re.compile(r"\d[\d,]*(?:\.\d+)?")
_WORD = re.compile(r"\w+")
_OPTION_LINE = re.compile(r"\n(?=[A-Z]\. )")
_HEDGES = re.compile(
    r"\b(not (?:entirely |quite )?sure|unsure|i (?:think|guess|believe)|perhaps|possibly|probably"
    r"|can(?:not|'t)|unable|don't (?:know|have)|wait|as an ai)\b",
    re.IGNORECASE,
)
MAX_TONE_CHARS = 4_000
_LARGEST = 1e18
"""Of numbers: a reply may be a digit four hundred times over, which no float holds."""
_SHINGLE = 4
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
    text: str = ""
    """The whole reply, where it is at hand."""
    is_call: bool = False
    mean_logprob: float | None = None
    min_logprob: float | None = None


def read_answer(local: LocalAnswer) -> Floats:
    """(ANSWER_SIZE,) numbers in the order of `ANSWER_NAMES`."""
    answer = plain(local.answer)
    others = [plain(each) for each in local.others]
    stem, *lines = _OPTION_LINE.split(local.prompt)
    options = [each.lower() for each in lines]
    values = [
        *_votes(answer, others, local.weights),
        *_length(local, answer),
        *_content(local, answer, options),
        *_beside(stem, answer, others, options),
        *_sureness(local),
        float(local.is_call),
        *_tone(local.text[-MAX_TONE_CHARS:]),
    ]
    return np.array(values, np.float32)


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


def _content(local: LocalAnswer, answer: str, options: Sequence[str]) -> list[float]:
    is_number = NUMBER.fullmatch(answer) is not None
    value = max(-_LARGEST, min(_LARGEST, float(answer))) if is_number else 0.0
    in_prompt = is_number and answer in {plain(each) for each in _IN_TEXT.findall(local.prompt)}
    letter = ord(answer) - 96 if len(answer) == 1 and "a" <= answer <= "z" else 0
    chosen = _chosen(answer, options)
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


def _beside(stem: str, answer: str, others: Sequence[str], options: Sequence[str]) -> list[float]:
    """The answer beside the options it was chosen from and beside two others' answers: a slip
    lands near (an option of the same words, a number not far off), a guess anywhere."""
    first, second = (*others, "", "")[:2]
    words = [set(_WORD.findall(each[2:])) for each in options]
    values = [_value(each[2:]) for each in options]
    known = [each for each in values if each is not None]
    mine, theirs, third = (_place(each, options) for each in (answer, first, second))
    extreme = central = about = 0.0
    if mine is not None:
        apart = [_alike(words[mine], each) for i, each in enumerate(words) if i != mine]
        every = [_alike(one, each) for i, one in enumerate(words) for each in words[:i]]
        central = float(np.mean(apart) - np.mean(every)) if apart else 0.0
        about = len(words[mine] & set(_WORD.findall(stem.lower()))) / max(1, len(words[mine]))
        value = values[mine]
        if value is not None and len(known) > 0.7 * len(options) > 1:
            extreme = abs(sorted(known).index(value) / max(1, len(known) - 1) - 0.5)

    def alike(one: int | None, other: int | None) -> float:
        return _alike(words[one], words[other]) if one is not None and other is not None else 0.0

    return [
        len(options) / 10,
        len(known) / max(1, len(options)),
        extreme,
        alike(mine, theirs),
        alike(mine, third),
        alike(theirs, third),
        central,
        about,
        _distance(_meant(answer, mine, values), _meant(first, theirs, values)),
        float(first == second != ""),
        float(not first and len(others) > 0),
        float(not second and len(others) > 1),
    ]


def _sureness(local: LocalAnswer) -> list[float]:
    """Mean and least log-probability of its tokens, bounded, and whether they are known."""
    if local.mean_logprob is None:
        return [USUAL_LOGPROB, USUAL_LEAST_LOGPROB, 0.0]
    least = local.mean_logprob if local.min_logprob is None else local.min_logprob
    return [max(-3.0, local.mean_logprob), max(-12.0, least), 1.0]


def _tone(text: str) -> list[float]:
    """How often it hedges; the share of its four-word runs that it had written before."""
    words = text.lower().split()
    runs = list(zip(*(words[i:] for i in range(_SHINGLE)), strict=False))
    repeats = 1.0 - len(set(runs)) / len(runs) if runs else 0.0
    return [float(np.log1p(len(_HEDGES.findall(text)))), repeats]


def _chosen(answer: str, options: Sequence[str]) -> str | None:
    place = _place(answer, options)
    return None if place is None else options[place]


def _place(answer: str, options: Sequence[str]) -> int | None:
    """Which of the options a letter names."""
    place = ord(answer) - 97 if len(answer) == 1 and "a" <= answer <= "z" else -1
    return place if 0 <= place < len(options) else None


def _value(text: str) -> float | None:
    found = NUMBER.search(text.replace(",", ""))
    return float(found.group()[:20]) if found else None


def _meant(answer: str, place: int | None, values: Sequence[float | None]) -> float | None:
    """The number that an answer says, itself or by the option it names."""
    if place is not None:
        return values[place]
    return float(answer) if NUMBER.fullmatch(answer) else None


def _distance(one: float | None, other: float | None) -> float:
    """0 for equal numbers, at most log 2; 0 too where one is missing."""
    if one is None or other is None or one == other:
        return 0.0
    return float(np.log1p(min(1.0, abs(one - other) / (abs(one) + abs(other)))))


def _alike(one: set[str], other: set[str]) -> float:
    """Share of words in common."""
    return len(one & other) / max(1, len(one | other))
