"""Learning at the desk: the router's own bases and regression, fitted on whole sets at once.

`before` sees prompts alone; `after` also what is known once the local model has answered. Both
predict the gain (strong right minus weak right) about each set's mean, since a score need only
order the queries of one set; that is the difference of the two sides the product learns, and least
squares on a whole set finds the weights that it finds outcome by outcome. A set is taught by the
sets like it: by its own labels where there are enough, by the sets whose prompts have the nearest
shape where there are none.

Both may look at the file being scored as a whole (never at its marks): its spread of shapes, and
for `after` its usual answers, by group too. A group stands for an agent. A router in service
follows the same as running means (`router.after.Usual`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from appliance.router.after import AGENT_WEIGHT, TOLD, AnswerBasis
from appliance.router.features import TextFeatures
from appliance.router.score import RIDGE, SHRINK, Basis, shape_in
from router_lib.data import Outcomes

ENOUGH_LABELS = 150


class Stage:
    BEFORE = "before"
    AFTER = "after"


def score(
    train: Sequence[Outcomes],
    rows: Sequence[np.ndarray],
    data: Outcomes,
    stage: str,
) -> np.ndarray:
    """One number for each row of `data`, higher = needs the strong model more. `rows[i]` are the
    rows of `train[i]` whose marks may be used; `data` may be one of `train` itself."""
    if stage == Stage.AFTER and not data.answers.size:
        stage = Stage.BEFORE
    marked = [(each, use[~np.isnan(each.gain[use])]) for each, use in zip(train, rows, strict=True)]
    usable = [
        (each, use)
        for each, use in marked
        if len(set(each.gain[use])) > 1 and (stage == Stage.BEFORE or each.answers.size)
    ]
    usable = _teachers(usable, data)
    if not usable:
        return _untaught(data, stage)
    shapes = np.concatenate([data.shape, *(each.shape for each in train)])
    centre, spread = shapes.mean(0), shapes.std(0) + 1e-6
    varies = np.concatenate([each.shape[use] for each, use in usable]).std(0) > 0
    spread[~varies] = np.inf  # nothing was taught about it: left out
    basis = Basis(centre, spread)
    taught, gain, weight = [], [], []
    for each, use in usable:
        taught.append(_inputs(each, stage, basis, data)[use])
        gain.append(each.gain[use] - each.gain[use].mean())
        weight.append(np.full(len(use), _likeness(each, data, spread)))
    weights = _ridge(np.concatenate(taught), np.concatenate(gain), np.concatenate(weight))
    return _inputs(data, stage, basis, data) @ weights


def _untaught(data: Outcomes, stage: str) -> np.ndarray:
    """The order without any mark to learn from: longer questions need the strong model more, and
    after generation those answers that other local models agree with less."""
    if stage == Stage.AFTER and data.answers[:, 0].std() > 0:
        return -data.answers[:, 0]
    return data.shape[:, 0]


def _teachers(
    usable: list[tuple[Outcomes, np.ndarray]], data: Outcomes
) -> list[tuple[Outcomes, np.ndarray]]:
    """Its own set alone if that has labels enough; else every set there is."""
    own = [pair for pair in usable if pair[0].name == data.name]
    return own if sum(len(use) for _, use in own) >= ENOUGH_LABELS else usable


def _likeness(one: Outcomes, other: Outcomes, spread: np.ndarray) -> float:
    """1 for sets of the same mean shape, falling towards 0.1 for unlike ones."""
    apart = (one.shape.mean(0) - other.shape.mean(0)) / spread
    return float(0.1 + 0.9 * np.exp(-np.mean(apart**2) * 4.0))


def _inputs(each: Outcomes, stage: str, basis: Basis, data: Outcomes) -> np.ndarray:
    question = inputs_before(basis, each)
    if stage == Stage.BEFORE:
        return question
    answer = inputs_after(each, question)
    if each is data or each.name == data.name:
        return np.concatenate([answer, _by_group(each, data)], axis=1)
    return np.concatenate([answer, np.zeros((len(each), len(set(data.groups))))], axis=1)


def inputs_before(basis: Basis, each: Outcomes) -> np.ndarray:
    shapes, sketches = each.shape.astype(np.float32), each.sketch.astype(np.float32)
    rows = zip(shapes, sketches, strict=True)
    return np.stack([basis.of(TextFeatures(*row)) for row in rows])


def inputs_after(each: Outcomes, question: np.ndarray) -> np.ndarray:
    """What the product reads after generation, its running means taken over the whole set."""
    centre, spread = each.answers.mean(0), each.answers.std(0) + 1e-3
    z = (each.answers - centre) / spread
    kind = np.zeros((len(each), len(TOLD)))
    told = z[:, list(TOLD)]
    for group in set(each.groups):
        member = each.groups == group
        others = told[member].sum(0) - told[member]
        kind[member] = others / (member.sum() - 1 + AGENT_WEIGHT)
    basis = AnswerBasis()
    rows = zip(z, kind, question, strict=True)
    return np.stack([basis.of(one, two, shape_in(three)) for one, two, three in rows])


def _by_group(each: Outcomes, data: Outcomes) -> np.ndarray:
    """Columns that make ridge regression find each group's deviation, shrunk as the product's."""
    groups = sorted(set(data.groups))
    scale = np.sqrt(RIDGE / SHRINK)
    return np.array([[group == other for other in groups] for group in each.groups]) * scale


def _ridge(inputs: np.ndarray, gain: np.ndarray, weight: np.ndarray) -> np.ndarray:
    weighed = inputs * weight[:, None]
    square = inputs.T @ weighed
    square[np.diag_indices_from(square)] += RIDGE
    return np.linalg.solve(square, weighed.T @ gain)
