"""Learning at the desk: the router's own basis and regression, fitted on whole sets at once.

`before` sees prompts alone; `after` also what is known once the local model has answered. Both
predict the gain (strong right minus weak right) about each set's mean, since a score need only
order the queries of one set. A set is taught by the sets like it: by its own labels where there
are enough, by the sets whose prompts have the nearest shape where there are none.

Both may look at the prompts (never the marks) of the file being scored as a whole: its spread of
lengths, and for `after` how much the local models agree on neighbouring questions. A router in
service has the same view of its recent traffic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from appliance.router.features import SHAPE_SIZE
from router_lib.data import Outcomes

ENOUGH_LABELS = 150
_SEED = 20
_CLIP = 3.0
_BLOCK = 1_000
NEIGHBOURS = 16_000
"""Most rows that are looked at as neighbours of one: a larger file is sampled, so that time grows
with its length and not with its square."""


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
        if len(use) and (stage == Stage.BEFORE or each.answers.size)
    ]
    usable = _teachers(usable, data)
    if not usable:
        return _untaught(data, stage)
    centre, spread = _centre(train, data)
    inputs = [_inputs(each, stage, centre, spread) for each, _ in usable]
    own = _inputs(data, stage, centre, spread)
    left, right, weight = [], [], []
    for (each, use), found in zip(usable, inputs, strict=True):
        gain = _target(each, stage)[use]
        left.append(found[use])
        right.append(gain - gain.mean())
        weight.append(np.full(len(use), _likeness(each, data, spread)))
    return own @ _ridge(np.concatenate(left), np.concatenate(right), np.concatenate(weight))


PEERS = 0.5


def _untaught(data: Outcomes, stage: str) -> np.ndarray:
    """The order without any mark to learn from: longer questions need the strong model more, and
    after generation those answers that other local models agree with less."""
    if stage == Stage.AFTER and data.answers[:, 0].std() > 0:
        return -data.answers[:, 0]
    return data.shape[:, 0]


def _target(each: Outcomes, stage: str) -> np.ndarray:
    """The gain to learn. After generation, half of the strong side's mark comes from its peers;
    before it, mixing in peers was measured to help maths and to hurt tool calls, and is left."""
    peers = PEERS if stage == Stage.AFTER else 0.0
    return (1 - peers) * each.strong + peers * each.strong_peers - each.weak


def _teachers(
    usable: list[tuple[Outcomes, np.ndarray]], data: Outcomes
) -> list[tuple[Outcomes, np.ndarray]]:
    """Its own set alone if that has labels enough; else every set there is."""
    own = [pair for pair in usable if pair[0].name == data.name]
    return own if sum(len(use) for _, use in own) >= ENOUGH_LABELS else usable


def _centre(train: Sequence[Outcomes], data: Outcomes) -> tuple[np.ndarray, np.ndarray]:
    """Centre and spread of the shapes of every prompt at hand, so that what sets kinds of work
    apart is far and what varies within one is near."""
    shapes = np.concatenate([data.shape, *(each.shape for each in train)])
    return shapes.mean(0), shapes.std(0) + 1e-6


def _likeness(one: Outcomes, other: Outcomes, spread: np.ndarray) -> float:
    """1 for sets of the same mean shape, falling towards 0.1 for unlike ones."""
    apart = (one.shape.mean(0) - other.shape.mean(0)) / spread
    return float(0.1 + 0.9 * np.exp(-np.mean(apart**2) * 4.0))


def _inputs(each: Outcomes, stage: str, centre: np.ndarray, spread: np.ndarray) -> np.ndarray:
    shape = np.clip((each.shape - centre) / spread, -_CLIP, _CLIP)
    question = [shape * 0.8 / np.sqrt(SHAPE_SIZE), _waves(shape, 128) * 0.8]
    if stage == Stage.BEFORE:
        return np.concatenate([*question, each.sketch * 0.4], axis=1)
    answer = _standard(np.concatenate([each.answers, _around(each, shape)], axis=1))
    parts = [answer / np.sqrt(answer.shape[1]) * 1.5, _waves(answer, 128) * 1.2]
    return np.concatenate([*parts, *(part * 0.5 for part in question), each.sketch * 0.1], axis=1)


def _waves(values: np.ndarray, count: int, length: float = 1.0) -> np.ndarray:
    """Random Fourier features of a Gaussian kernel whose length is `length` x sqrt(columns)."""
    draw = np.random.Generator(np.random.PCG64(_SEED))
    columns = values.shape[1]
    phase = values @ (draw.standard_normal((columns, count)) / (length * np.sqrt(columns)))
    return np.concatenate([np.cos(phase), np.sin(phase)], axis=1) / np.sqrt(count)


def _standard(values: np.ndarray) -> np.ndarray:
    """Columns about their own mean and spread in this file: a pair of models has its own lengths
    and its own rate of agreement, and what tells is the departure from them."""
    return np.clip((values - values.mean(0)) / (values.std(0) + 1e-6), -_CLIP, _CLIP)


def _around(each: Outcomes, shape: np.ndarray) -> np.ndarray:
    """For each row, agreement, length and gaps among its neighbours in words, in shape, and in its
    group, itself left out: how hard the local models find this kind of question."""
    told = each.answers[:, [0, 4, 10]]
    mean = told.mean(0)
    pool = np.arange(len(each))
    if len(pool) > NEIGHBOURS:
        pool = np.random.default_rng(_SEED).permutation(pool)[:NEIGHBOURS]
    blocks = [
        _near(each, shape, told, pool, np.arange(at, min(at + _BLOCK, len(each))))
        for at in range(0, len(each), _BLOCK)
    ]
    found = [np.concatenate(blocks)]
    in_group = np.empty_like(told)
    for group in set(each.groups):
        member = each.groups == group
        total = told[member].sum(0) + 20 * mean - told[member]
        in_group[member] = total / (member.sum() + 19)
    ranks = np.argsort(np.argsort(each.answers[:, 10])) / len(each)
    return np.concatenate([*found, in_group, np.stack([ranks, (ranks - 0.5) ** 2], 1)], axis=1)


def _near(
    each: Outcomes, shape: np.ndarray, told: np.ndarray, pool: np.ndarray, block: np.ndarray
) -> np.ndarray:
    """What the neighbours in `pool` tell the rows of `block`, by words and by shape."""
    mean, square = told.mean(0), (shape**2).sum(1)
    words = np.maximum(each.sketch[block] @ each.sketch[pool].T, 0.0) ** 2
    cross = shape[block] @ shape[pool].T
    apart = np.maximum(square[block][:, None] + square[pool][None] - 2 * cross, 0.0)
    alike = np.exp(-apart / (0.5 * shape.shape[1]))
    itself = block[:, None] == pool[None]
    found = []
    for nearness, trust in ((words, 0.3), (alike, 1.0)):
        nearness[itself] = 0.0
        total = nearness @ told[pool] + trust * mean
        found.append(total / (nearness.sum(1) + trust)[:, None])
    return np.concatenate(found, axis=1)


def _ridge(
    inputs: np.ndarray, gain: np.ndarray, weight: np.ndarray, strength: float = 4.0
) -> np.ndarray:
    weighed = inputs * weight[:, None]
    square = inputs.T @ weighed
    square[np.diag_indices_from(square)] += strength
    return np.linalg.solve(square, weighed.T @ gain)
