"""The score after generation: what a finished local answer adds to what was expected before it.

One Bayesian regression for each side again (`score.Regression`), on what the answer shows
(`answers.read_answer`) and the shape of the question. What tells is not a number but its departure
from what is usual: every local model has its own lengths and its own rate of agreement, and so has
every agent's kind of work. Both are followed as running means, and the answer is read against them.

Each side learns the rest that the score before generation left, from the same outcomes: the local
side when it becomes known whether the answer was right; the cloud's when a step was handed up,
since what is hard for the small model is often hard for the large one too, and a step that both
would fail is not worth sending.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from appliance.router.answers import ANSWER_NAMES, ANSWER_SIZE, FAMILIES
from appliance.router.features import SHAPE_SIZE
from appliance.router.score import Prior, Regression, Vector, frequencies
from appliance.router.types import Place

TOLD: Final = tuple(ANSWER_NAMES.index(name) for name in ("agree", "missing", "log_chars"))
"""What is followed by agent: how much the local models find of its kind of work, and how long it
takes them."""
_LENGTH: Final = ANSWER_NAMES.index("log_chars")

READ_SIZE: Final = ANSWER_SIZE + len(TOLD) + 1
N_WAVES: Final = 128
AFTER_SIZE: Final = 1 + READ_SIZE + 2 * N_WAVES + SHAPE_SIZE
_CLIP: Final = 3.0
_CONSTANT, _LINEAR, _WAVES, _QUESTION = 0.5, 1.5, 1.2, 0.5
LINEAR: Final = _LINEAR / np.sqrt(READ_SIZE)
"""How a departure of one spread enters the regression."""
_AMONG_AGENTS: Final = 3.0
"""Answers differ about three times as much as the means of kinds of work do."""
USUAL_WEIGHT: Final = 50.0
"""Answers of a model at which its own mean and spread count as much as the prior's."""
AGENT_WEIGHT: Final = 20.0


@dataclass(slots=True)
class Usual:
    """Running sums of what answers look like."""

    count: float = 0.0
    total: Vector = field(default_factory=lambda: np.zeros(ANSWER_SIZE))
    squares: Vector = field(default_factory=lambda: np.zeros(ANSWER_SIZE))

    def saw(self, answer: Vector) -> None:
        self.count += 1.0
        self.total += answer
        self.squares += answer**2

    def mean(self, towards: Vector, weight: float) -> Vector:
        found: Vector = (self.total + weight * towards) / (self.count + weight)
        return found

    def spread(self, centre: Vector, towards: Vector, spread: Vector) -> Vector:
        """About `centre`, with the prior's mean and spread as `USUAL_WEIGHT` answers."""
        squares = self.squares + USUAL_WEIGHT * (spread**2 + towards**2)
        found: Vector = np.sqrt(np.maximum(squares / (self.count + USUAL_WEIGHT) - centre**2, 0.0))
        return found


class AnswerBasis:
    """The fixed map from a standardised answer and the question's shape to inputs."""

    def __init__(self) -> None:
        self._frequencies = frequencies(READ_SIZE, N_WAVES, 1.0)

    def of(self, answer: Vector, agent: Vector, shape: Vector) -> Vector:
        """(AFTER_SIZE,) inputs. `answer` (ANSWER_SIZE,) and `agent` (len(TOLD),) in spreads from
        what is usual, `shape` (SHAPE_SIZE,) as the basis before generation scales it."""
        z = np.clip(answer, -_CLIP, _CLIP)
        kind = np.clip(agent * _AMONG_AGENTS, -_CLIP, _CLIP)
        read = np.concatenate((z, kind, [z[_LENGTH] ** 2 - 1.0]))
        phase = read @ self._frequencies
        waves = _WAVES / np.sqrt(N_WAVES)
        return np.concatenate(
            (
                [_CONSTANT],
                read * LINEAR,
                np.cos(phase) * waves,
                np.sin(phase) * waves,
                shape * _QUESTION,
            )
        )


@dataclass(frozen=True, slots=True)
class After:
    """What to expect of both sides now, and by which families of signs the local side moved."""

    local_right: float
    cloud_right: float
    because: Mapping[str, float]


class AfterScore:
    """The score in use after generation. Reading never changes it."""

    def __init__(self, prior: Prior) -> None:
        self.basis = AnswerBasis()
        self.prior = prior
        self.sides = {
            place: Regression(weights) for place, weights in zip(Place, prior.after, strict=True)
        }
        self.usual: dict[str, Usual] = {}

    def inputs(self, answer: Vector, shape: Vector, model: str, agent: str) -> Vector:
        """What the sides read. `model` and `agent` say whose usual answers to compare with."""
        z, kind = self._departures(answer, model, agent)
        return self.basis.of(z, kind, shape)

    def expect(
        self,
        answer: Vector,
        shape: Vector,
        model: str,
        agent: str,
        before: Mapping[Place, float],
    ) -> After:
        """Both sides' chance to be right, from what was expected `before` and the answer."""
        z, kind = self._departures(answer, model, agent)
        inputs = self.basis.of(z, kind, shape)
        local = self.sides[Place.LOCAL]
        moved, because = local.mean(inputs), {}
        for name, (first, last) in FAMILIES.items():
            without = z.copy()
            without[first:last] = 0.0
            because[name] = round(moved - local.mean(self.basis.of(without, kind, shape)), 4)
        return After(
            local_right=_clip(before[Place.LOCAL] + moved),
            cloud_right=_clip(before[Place.CLOUD] + self.sides[Place.CLOUD].mean(inputs)),
            because=because,
        )

    def learn(self, inputs: Vector, place: Place, missed: float, weight: float) -> None:
        """Take in one outcome: `missed` is what the score before generation missed."""
        side = self.sides[place]
        side.learn(inputs, missed - side.mean(inputs), weight)

    def saw(self, answer: Vector, model: str, agent: str) -> None:
        """Follow what is usual."""
        for key in (f"model/{model}", f"agent/{agent}"):
            self.usual.setdefault(key, Usual()).saw(answer)

    def _departures(self, answer: Vector, model: str, agent: str) -> tuple[Vector, Vector]:
        """How far the answer, and its agent's answers as a whole, are from the model's usual."""
        prior = self.prior
        usual = self.usual.get(f"model/{model}", Usual())
        centre = usual.mean(prior.answer_centre, USUAL_WEIGHT)
        spread = usual.spread(centre, prior.answer_centre, prior.answer_spread) + 1e-3
        kind = self.usual.get(f"agent/{agent}", Usual()).mean(centre, AGENT_WEIGHT)
        told = list(TOLD)
        return (answer - centre) / spread, ((kind - centre) / spread)[told]


def _clip(probability: float) -> float:
    return min(0.98, max(0.02, probability))
