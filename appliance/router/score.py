"""The learned score: what a step's text and history say of each side's chance to be right.

One Bayesian linear regression for each side (local, cloud), on a fixed basis of the step:

- the shape of its text, and where it stands in its turn, as they are;
- random Fourier features of the shape: their inner product is a Gaussian kernel, so what was
  learned from one kind of text applies to texts of like shape and leaves others alone (Rahimi and
  Recht 2007);
- the sketch of its words, at a smaller weight, since words carry subjects and subjects mislead.

Why this and no network or boosted trees: the regression is exact after every single outcome
(recursive least squares), so that learning on the road equals learning at the desk on the same
rows; it knows its own uncertainty; it forgets by widening that; a decision is one product of a few
hundred numbers; and it is 300 lines of numpy in all. On public outcomes its ranking is as good as
the best we tried (kernel regression on full TF-IDF, boosted and random trees).

On top, what the basis cannot see: how far each agent, tool and model has been above or below the
regression, shrunk towards zero until there is evidence.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Final

import numpy as np
from numpy.typing import NDArray

from appliance.router.features import SHAPE_SIZE, TextFeatures, read
from appliance.router.types import Place, Score, StepFacts, TargetFacts, bounded_text
from appliance.router.words import SKETCH_SIZE

Vector = NDArray[np.float64]

N_WAVES: Final = 128
"""Random frequencies; each gives a cosine and a sine."""
STEP_SIZE: Final = 8
SIZE: Final = 1 + SHAPE_SIZE + STEP_SIZE + 2 * N_WAVES + SKETCH_SIZE
_SEED: Final = 20
_CLIP: Final = 3.0
_LINEAR, _WAVES, _WORDS, _CONSTANT = 0.8, 0.8, 0.4, 3.0
_LENGTH: Final = 0.6
"""Of the kernel, in root mean squares over the shape's numbers: as far as texts are alike."""
RIDGE: Final = 6.0
"""Prior precision: outcomes a direction needs before it is believed."""
SHRINK: Final = 25.0
"""Outcomes of an agent, tool or model at which half of its own deviation is believed."""


_ARRAYS = ("centre", "spread", "base", "weights", "answer_centre", "answer_spread", "after")


@dataclass(frozen=True, slots=True)
class Prior:
    """What ships: centre and spread of the shape, and the weights to start from.

    `weights` is (2, SIZE), local then cloud; zero means no opinion beyond `base` (2,). For the
    score after generation: centre and spread of answers, and `after` (2, after.AFTER_SIZE).
    """

    centre: Vector
    spread: Vector
    base: Vector
    weights: Vector
    answer_centre: Vector
    answer_spread: Vector
    after: Vector
    version: str

    @classmethod
    def shipped(cls) -> Prior:
        """The parameters in the package (`prior.npz`)."""
        return cls.from_bytes(resources.files(__package__).joinpath("prior.npz").read_bytes())

    @classmethod
    def from_bytes(cls, body: bytes) -> Prior:
        with np.load(io.BytesIO(body), allow_pickle=False) as found:
            values = {name: found[name].astype(np.float64) for name in _ARRAYS}
            return cls(**values, version=str(found["version"]))

    def to_bytes(self) -> bytes:
        out = io.BytesIO()
        values = {name: getattr(self, name).astype(np.float32) for name in _ARRAYS}
        np.savez_compressed(out, **values, version=np.array(self.version))
        return out.getvalue()


def frequencies(size: int, count: int, length: float) -> Vector:
    """(size, count) random frequencies of a Gaussian kernel of `length` x sqrt(size).

    They are drawn in blocks that are orthogonal (Yu et al. 2016, Orthogonal Random Features), at
    the lengths of independent ones: the same kernel on average at a fraction of the variance,
    which on a few hundred labels was worth 0.01 APGR.
    """
    draw = np.random.Generator(np.random.PCG64(_SEED))
    blocks = []
    for _ in range(-(-count // size)):
        turned, upper = np.linalg.qr(draw.standard_normal((size, size)))
        lengths = np.sqrt((draw.standard_normal((size, size)) ** 2).sum(0))
        blocks.append(turned * np.sign(np.diag(upper)) * lengths)
    found: Vector = np.concatenate(blocks, axis=1)[:, :count] / (length * np.sqrt(size))
    return found


class Basis:
    """The fixed map from features to the regression's inputs."""

    def __init__(self, centre: Vector, spread: Vector) -> None:
        self._frequencies = frequencies(SHAPE_SIZE, N_WAVES, _LENGTH)
        self._centre = centre
        self._spread = spread

    def of(self, features: TextFeatures, step: Vector | None = None) -> Vector:
        """The (SIZE,) inputs for one text; `step` is `step_features` or None for none."""
        out = np.zeros(SIZE)
        shape = (features.shape - self._centre) / self._spread
        np.maximum(shape, -_CLIP, out=shape)
        np.minimum(shape, _CLIP, out=shape)
        phase = shape @ self._frequencies
        waves = 1 + SHAPE_SIZE + STEP_SIZE
        out[0] = _CONSTANT
        np.multiply(shape, _LINEAR / math.sqrt(SHAPE_SIZE), out=out[1 : 1 + SHAPE_SIZE])
        if step is not None:
            out[1 + SHAPE_SIZE : waves] = step * (_LINEAR / math.sqrt(STEP_SIZE))
        np.cos(phase, out=out[waves : waves + N_WAVES])
        np.sin(phase, out=out[waves + N_WAVES : waves + 2 * N_WAVES])
        out[waves : waves + 2 * N_WAVES] *= _WAVES / math.sqrt(N_WAVES)
        np.multiply(features.sketch, _WORDS, out=out[waves + 2 * N_WAVES :])
        return out


def shape_in(inputs: Vector) -> Vector:
    """The shape as the basis scaled it."""
    return inputs[1 : 1 + SHAPE_SIZE]


class Regression:
    """Recursive least squares: the posterior over the weights, exact after every outcome."""

    def __init__(self, weights: Vector, precision: float = RIDGE) -> None:
        self.weights = weights.copy()
        self.covariance = np.eye(len(weights)) / precision

    def mean(self, inputs: Vector) -> float:
        return float(self.weights @ inputs)

    def learn(self, inputs: Vector, residual: float, weight: float) -> None:
        """Take in one outcome: `residual` is what the mean missed, `weight` its reliability."""
        gain = self.covariance @ inputs
        scale = weight / (1.0 + weight * float(inputs @ gain))
        self.weights += gain * (residual * scale)
        self.covariance -= np.outer(gain, gain * scale)

    def widen(self, share: float) -> None:
        """Forget: move the covariance by `share` towards where it began (used on drift)."""
        self.covariance *= 1.0 - share
        self.covariance[np.diag_indices_from(self.covariance)] += share / RIDGE


@dataclass(slots=True)
class Deviation:
    """How far one agent, tool or model has been from the regression: sum and weight."""

    total: float = 0.0
    weight: float = 0.0

    @property
    def shrunk(self) -> float:
        return self.total / (self.weight + SHRINK)

    def learn(self, residual: float, weight: float) -> None:
        self.total += residual * weight
        self.weight += weight


_SIDES = (Place.LOCAL, Place.CLOUD)


class Scorer:
    """The score in use. One owner (the router's) learns into it; reading never changes it."""

    def __init__(self, prior: Prior) -> None:
        self.basis = Basis(prior.centre, prior.spread)
        self.prior = prior
        self.sides = {
            place: Regression(weights) for place, weights in zip(_SIDES, prior.weights, strict=True)
        }
        self.base = dict(zip(_SIDES, map(float, prior.base), strict=True))
        self.deviations: dict[str, Deviation] = {}
        self.outcomes = 0

    @property
    def version(self) -> str:
        """Names the parameters a score came from: the prior's, and how many outcomes since."""
        return f"{self.prior.version}+{self.outcomes}"

    def score(self, step: StepFacts, targets: Sequence[TargetFacts]) -> Score:
        """What to expect of each target for this step, before anything was generated."""
        inputs = self.inputs(step)
        sides = {place: self.base[place] + side.mean(inputs) for place, side in self.sides.items()}
        history = self._history(step)
        by_model = {
            target.name: _clip(
                sides[target.place]
                + history[target.place]
                + self._deviation(f"model/{target.name}")
            )
            for target in targets
        }
        return Score(
            local_right=_clip(sides[Place.LOCAL] + history[Place.LOCAL]),
            cloud_right=_clip(sides[Place.CLOUD] + history[Place.CLOUD]),
            by_model=by_model,
            certainty=self.outcomes / (self.outcomes + 200.0),
            params_version=self.version,
        )

    def inputs(self, step: StepFacts) -> Vector:
        return self.basis.of(read(bounded_text(step.text), step.tool_shape), step_features(step))

    def expected(self, inputs: Vector, place: Place, keys: Sequence[str]) -> float:
        """What to expect at `place` of an outcome that also counts under `keys`, unclipped."""
        found = self.base[place] + self.sides[place].mean(inputs)
        return found + sum(self._deviation(key) for key in keys)

    def learn(
        self, inputs: Vector, place: Place, keys: Sequence[str], right: float, weight: float
    ) -> float:
        """Take in one outcome: `right` in 0..1 was seen at `place`; `keys` name the agent, tool
        and model whose deviation it also tells of (`history_keys`). Returns what was missed."""
        side = self.sides[place]
        missed = right - self.base[place] - side.mean(inputs)
        unexplained = right - self.expected(inputs, place, keys)
        side.learn(inputs, unexplained, weight)
        for key in keys:
            deviation = self.deviations.setdefault(key, Deviation())
            deviation.learn(missed - deviation.shrunk, weight)
        self.outcomes += 1
        return unexplained

    def _history(self, step: StepFacts) -> Mapping[Place, float]:
        return {
            place: sum(self._deviation(key) for key in history_keys(step, place))
            for place in _SIDES
        }

    def _deviation(self, key: str) -> float:
        found = self.deviations.get(key)
        return found.shrunk if found is not None else 0.0


def history_keys(step: StepFacts, place: Place) -> tuple[str, ...]:
    """The names under which an outcome of this step at that side is also counted."""
    keys = [f"agent/{step.agent}/{place.value}"]
    if step.last_tool is not None:
        keys.append(f"tool/{step.last_tool}/{place.value}")
    return tuple(keys)


def step_features(step: StepFacts) -> Vector:
    """(STEP_SIZE,) numbers of about unit size: where the step stands in its turn."""
    return np.array(
        [
            math.log1p(step.prompt_tokens) / 5.0 - 1.0,
            math.log1p(step.n_tools) / 2.0,
            math.log1p(step.step_index) / 2.0,
            float(step.last_tool_failed),
            min(3.0, step.failures_in_a_row) / 2.0,
            float(step.in_tool_loop),
            float(step.needs_tools),
            float(step.needs_images),
        ]
    )


def _clip(probability: float) -> float:
    return min(0.98, max(0.02, probability))
