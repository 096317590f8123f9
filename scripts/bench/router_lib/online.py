"""The shipped learner, outcome by outcome: how fast it gets there, how fast it decides."""

from __future__ import annotations

import time

import numpy as np

from appliance.router.features import TextFeatures
from appliance.router.learn import Learner, Outcome
from appliance.router.route import route
from appliance.router.score import SIZE, Basis, Prior
from appliance.router.types import Place, Policy, Prices, StepFacts, TargetFacts
from appliance.types import Label
from router_lib import metrics, offline
from router_lib.data import Outcomes

OUTCOMES = 500
_PRIOR_STRENGTH = 30.0


def fitted_prior(sets: list[Outcomes], version: str = "1") -> Prior:
    """Parameters to start from: spread of shapes, and weights that all sets agree on, each set
    counting alike, held small so that a user's own outcomes soon outweigh them."""
    centre, spread = _spread(sets)
    basis = Basis(centre, spread)
    inputs = [inputs_of(basis, each) for each in sets]
    weight = np.concatenate([np.full(len(each), 400 / len(each)) for each in sets])
    base, weights = [], []
    for name in ("weak", "strong"):
        marks = [getattr(each, name) for each in sets]
        base.append(float(np.mean([each.mean() for each in marks])))
        residual = np.concatenate([each - each.mean() for each in marks])
        every = np.concatenate(inputs)
        weighed = every * weight[:, None]
        square = weighed.T @ every + _PRIOR_STRENGTH * np.eye(SIZE)
        found = np.linalg.solve(square, weighed.T @ residual)
        found[0] = 0.0
        weights.append(found)
    return Prior(centre, spread, np.array(base), np.array(weights), version)


def untrained(sets: list[Outcomes]) -> Prior:
    """The spread of shapes and nothing else."""
    centre, spread = _spread(sets)
    return Prior(centre, spread, np.array([0.7, 0.85]), np.zeros((2, SIZE)), "untrained")


def inputs_of(basis: Basis, data: Outcomes) -> np.ndarray:
    shapes, sketches = data.shape.astype(np.float32), data.sketch.astype(np.float32)
    rows = zip(shapes, sketches, strict=True)
    return np.stack([basis.of(TextFeatures(*row)) for row in rows])


def learning(sets: list[Outcomes], passes: int) -> dict[str, float]:
    """Starting untrained, 500 outcomes of one set, then 500 of the next, and so on: on held-out
    rows of the set just learned, the gain over 0.5 beside the offline router's with all labels.
    Each set stands for one agent's work."""
    found: dict[str, list[float]] = {}
    names = [each.name for each in sets if each.name in ("rl_mmlu", "bfcl", "rl_gsm8k")]
    for seed in range(passes):
        draw = np.random.default_rng(seed)
        learner = Learner(untrained(sets))
        for name in draw.permutation(names):
            data = next(each for each in sets if each.name == name)
            inputs = inputs_of(learner.scorer.basis, data)
            held = data.fold(3, seed) == 0
            rows = draw.permutation(np.flatnonzero(~held))[:OUTCOMES]
            for row in rows:
                for place, right in (
                    (Place.LOCAL, data.weak[row]),
                    (Place.CLOUD, data.strong[row]),
                ):
                    keys = (f"agent/{name}/{place.value}",)
                    outcome = Outcome(inputs[row], place, place.value, keys, float(right), 1.0)
                    learner.learn(outcome)
            side = learner.scorer.sides
            told = inputs[held] @ (side[Place.CLOUD].weights - side[Place.LOCAL].weights)
            weak, strong = data.weak[held], data.strong[held]
            whole = offline.score([data], [np.flatnonzero(~held)], data, "before")[held]
            found.setdefault(f"online_{name}_{OUTCOMES}", []).append(
                metrics.ranked(told, weak, strong)
            )
            found.setdefault(f"online_{name}_offline", []).append(
                metrics.ranked(whole, weak, strong)
            )
    means = {name: round(float(np.mean(values)), 4) for name, values in found.items()}
    reached = np.mean([means[f"online_{name}_{OUTCOMES}"] - 0.5 for name in names])
    possible = np.mean([means[f"online_{name}_offline"] - 0.5 for name in names])
    return means | {"online_share_of_offline_gain": round(float(reached / possible), 3)}


def latency(rounds: int) -> dict[str, float]:
    """Microseconds for a whole decision (features, score, route) at 4,000 characters."""
    learner = Learner(Prior.shipped())
    sentence = "The committee met on 14 May and asked: how many of the 1,250 members voted? "
    targets = (
        TargetFacts("local", Place.LOCAL, 32_768),
        TargetFacts("cloud", Place.CLOUD, 200_000, prices=Prices(3_000_000, 15_000_000)),
    )
    taken = []
    for number in range(rounds):
        step = StepFacts(
            agent="a",
            policy=Policy.BALANCED,
            label=Label.PUBLIC,
            chain=("local", "cloud"),
            prompt_tokens=1_200,
            max_output_tokens=800,
            text=(f"Case {number}. " + sentence * 60)[:4_000],
        )
        began = time.perf_counter_ns()
        route(step, targets, learner.scorer.score(step, targets), 0.5)
        taken.append((time.perf_counter_ns() - began) / 1_000)
    return {
        "decision_p50_us": round(float(np.quantile(taken, 0.5)), 1),
        "decision_p99_us": round(float(np.quantile(taken, 0.99)), 1),
    }


def _spread(sets: list[Outcomes]) -> tuple[np.ndarray, np.ndarray]:
    shapes = np.concatenate([each.shape for each in sets])
    return shapes.mean(0), shapes.std(0) + 1e-3
