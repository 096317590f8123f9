"""From what became of a step to what the score knows: outcomes, credit, replay, drift, bytes.

The daemon keeps every `Outcome` in an append-only table (`to_json`), and now and then a snapshot of
the learner (`to_bytes`). The snapshot is a cache: replaying the outcomes from the first on gives
the same numbers. An outcome holds the step's features, not its text.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from appliance.router.after import After, AfterScore, Usual
from appliance.router.answers import ANSWER_SIZE
from appliance.router.score import (
    SIZE,
    Deviation,
    Prior,
    Regression,
    Scorer,
    Vector,
    history_keys,
    shape_in,
)
from appliance.router.types import Place, StepFacts, TargetFacts
from appliance.types import Json

MAX_PROPENSITY_WEIGHT: Final = 5.0
"""An explored outcome counts at most this much more than a usual one: unbounded inverse
propensities would let one lucky draw outweigh a day."""

NEW_AGENT_SHARE: Final = 0.5
"""How far uncertainty goes back to where it began when an agent's first outcome comes in: its work
may be of a kind that what was learned so far is wrong about."""

DRIFT_SLACK: Final = 0.03
DRIFT_LIMIT: Final = 15.0
FORGET_SHARE: Final = 0.05
_FORMAT: Final = 2


@dataclass(frozen=True, slots=True)
class Signals:
    """What was seen after a step; None where nothing was. Strongest first."""

    tests_passed: bool | None = None
    user_overrode: bool = False
    """The user threw the answer away, undid it, or sent the step elsewhere."""
    user_retried: bool = False
    tool_failed: bool | None = None
    escalated: bool = False
    """A local answer was found bad by what it shows (cut, empty, a call that fits no schema)."""
    cloud_agrees: bool | None = None
    """A local answer was handed up on suspicion alone, and the cloud's was the same, or not."""
    judge: float | None = None
    finished: bool = False
    """The turn ended with nothing against it."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a local answer showed (`answers.read_answer`), whose it was, and for which agent."""

    answer: Vector
    model: str
    agent: str

    def rounded(self) -> Shown:
        """As it is stored, so that learning now and learning from the table agree."""
        return replace(self, answer=self.answer.astype(np.float16).astype(np.float64))


@dataclass(frozen=True, slots=True)
class Outcome:
    """One step's end, as the learner takes it: `right` in 0..1, `weight` its reliability. `shown`
    is the local answer that was judged in this step, kept or handed up."""

    inputs: Vector
    place: Place
    model: str
    keys: tuple[str, ...]
    right: float
    weight: float
    propensity: float = 1.0
    shown: Shown | None = None

    def to_json(self) -> dict[str, Json]:
        shown = self.shown
        return {
            "inputs": _packed(self.inputs),
            "place": self.place.value,
            "model": self.model,
            "keys": list(self.keys),
            "right": self.right,
            "weight": self.weight,
            "propensity": self.propensity,
            "shown": None
            if shown is None
            else {"answer": _packed(shown.answer), "model": shown.model, "agent": shown.agent},
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Json]) -> Outcome:
        """Raises ValueError where the features are of another version's size."""
        shown = body.get("shown")
        return cls(
            inputs=_unpacked(body["inputs"], SIZE),
            place=Place(body["place"]),
            model=body["model"],
            keys=tuple(body["keys"]),
            right=body["right"],
            weight=body["weight"],
            propensity=body["propensity"],
            shown=None
            if shown is None
            else Shown(_unpacked(shown["answer"], ANSWER_SIZE), shown["model"], shown["agent"]),
        )


def _packed(values: Vector) -> str:
    return base64.b64encode(values.astype(np.float16).tobytes()).decode("ascii")


def _unpacked(text: str, size: int) -> Vector:
    packed = np.frombuffer(base64.b64decode(text), np.float16)
    if len(packed) != size:
        raise ValueError(f"an outcome of {len(packed)} features; this version has {size}")
    return packed.astype(np.float64)


def credit(signals: Signals) -> tuple[float, float] | None:
    """(right, weight) of the strongest signal; None when nothing was seen. Tests and people count
    above a judge, and silence counts little."""
    if signals.tests_passed is not None:
        return float(signals.tests_passed), 1.0
    if signals.user_overrode:
        return 0.0, 1.0
    if signals.user_retried:
        return 0.0, 0.7
    if signals.escalated:
        return 0.0, 0.5
    if signals.cloud_agrees is not None:
        return float(signals.cloud_agrees), 0.5
    if signals.tool_failed:
        return 0.0, 0.4
    if signals.judge is not None:
        return min(1.0, max(0.0, signals.judge)), 0.3
    return (1.0, 0.2) if signals.finished or signals.tool_failed is False else None


def outcome_of(
    scorer: Scorer,
    step: StepFacts,
    target: TargetFacts,
    propensity: float,
    signals: Signals,
    shown: Shown | None = None,
) -> Outcome | None:
    """The outcome of a step that ran at `target`; None where nothing was learned."""
    credited = credit(signals)
    if credited is None:
        return None
    right, weight = credited
    inputs = scorer.inputs(step).astype(np.float16).astype(np.float64)
    keys = history_keys(step, target.place)
    if shown is not None:
        shown = shown.rounded()
    return Outcome(inputs, target.place, target.name, keys, right, weight, propensity, shown)


class Learner:
    """Both scores and the watch over their errors. One owner; not for several threads."""

    def __init__(self, prior: Prior) -> None:
        self.scorer = Scorer(prior)
        self.after = AfterScore(prior)
        self.drift = {place: Drift() for place in Place}

    def learn(self, outcome: Outcome) -> None:
        """Take in one outcome. A run of errors beyond what the past explains widens the side's
        uncertainty, so that new work is learned at the speed of the first hundred outcomes."""
        place = outcome.place
        expected = self.scorer.base[place] + self.scorer.sides[place].mean(outcome.inputs)
        weight = outcome.weight * min(1.0 / outcome.propensity, MAX_PROPENSITY_WEIGHT)
        keys = (*outcome.keys, f"model/{outcome.model}")
        if outcome.keys and outcome.keys[0] not in self.scorer.deviations:
            self.scorer.sides[place].widen(NEW_AGENT_SHARE)
        missed = self.scorer.learn(outcome.inputs, place, keys, outcome.right, weight)
        if outcome.shown is not None:
            self._learn_after(outcome, outcome.shown, missed, weight)
        self.drift[place] = self.drift[place].after((outcome.right - expected) * outcome.weight)
        if self.drift[place].is_over:
            self.scorer.sides[place].widen(FORGET_SHARE)
            self.after.sides[place].widen(FORGET_SHARE)
            self.drift[place] = Drift()

    def _learn_after(self, outcome: Outcome, shown: Shown, missed: float, weight: float) -> None:
        inputs = self.after.inputs(shown.answer, shape_in(outcome.inputs), shown.model, shown.agent)
        self.after.learn(inputs, outcome.place, missed, weight)
        if outcome.place is Place.LOCAL:
            self.after.saw(shown.answer, shown.model, shown.agent)

    def expect(self, step: StepFacts, shown: Shown, before: Mapping[Place, float]) -> After:
        """What to expect of both sides now that a local answer showed this."""
        shape = shape_in(self.scorer.inputs(step))
        return self.after.expect(shown.answer, shape, shown.model, shown.agent, before)

    def to_bytes(self) -> bytes:
        """A snapshot; `from_bytes` restores it (covariances are kept in single precision)."""
        scorer, usual = self.scorer, self.after.usual
        names = json.dumps(
            {
                "format": _FORMAT,
                "prior": scorer.prior.version,
                "outcomes": scorer.outcomes,
                "deviations": {k: [v.total, v.weight] for k, v in scorer.deviations.items()},
                "drift": {p.value: [d.high, d.low] for p, d in self.drift.items()},
                "usual": {key: each.count for key, each in usual.items()},
            }
        )
        arrays = {}
        for stage, sides in self._regressions().items():
            for place, side in sides.items():
                arrays[f"{stage}_{place.value}"] = side.weights
                arrays[f"{stage}_{place.value}_covariance"] = side.covariance.astype(np.float32)
        seen = [np.stack((each.total, each.squares)) for each in usual.values()]
        arrays["usual"] = np.array(seen).reshape(len(seen), 2, ANSWER_SIZE)
        out = io.BytesIO()
        np.savez(out, allow_pickle=False, names=np.array(names), **arrays)
        return out.getvalue()

    @classmethod
    def from_bytes(cls, body: bytes, prior: Prior) -> Learner:
        """Raises ValueError when the snapshot is of another format or prior: replay instead."""
        learner = cls(prior)
        with np.load(io.BytesIO(body), allow_pickle=False) as found:
            names = json.loads(str(found["names"]))
            if names["format"] != _FORMAT or names["prior"] != prior.version:
                raise ValueError("a snapshot of other parameters; replay the outcomes instead")
            for stage, sides in learner._regressions().items():
                for place, side in sides.items():
                    side.weights = found[f"{stage}_{place.value}"].copy()
                    covariance = found[f"{stage}_{place.value}_covariance"].astype(np.float64)
                    side.covariance = (covariance + covariance.T) / 2
            sums = zip(names["usual"].items(), found["usual"], strict=True)
            learner.after.usual = {
                key: Usual(count, total.copy(), squares.copy())
                for (key, count), (total, squares) in sums
            }
        scorer = learner.scorer
        scorer.outcomes = names["outcomes"]
        scorer.deviations = {key: Deviation(*pair) for key, pair in names["deviations"].items()}
        learner.drift = {Place(key): Drift(*pair) for key, pair in names["drift"].items()}
        return learner

    def _regressions(self) -> Mapping[str, Mapping[Place, Regression]]:
        return {"before": self.scorer.sides, "after": self.after.sides}


@dataclass(frozen=True, slots=True)
class Drift:
    """Page-Hinkley test on signed errors: sums of what exceeds the slack, either way."""

    high: float = 0.0
    low: float = 0.0

    def after(self, error: float) -> Drift:
        return replace(
            self,
            high=max(0.0, self.high + error - DRIFT_SLACK),
            low=max(0.0, self.low - error - DRIFT_SLACK),
        )

    @property
    def is_over(self) -> bool:
        return max(self.high, self.low) > DRIFT_LIMIT
