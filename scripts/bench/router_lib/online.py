"""The shipped learner, outcome by outcome: how fast it gets there, how fast it decides."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from appliance.router.after import AFTER_SIZE, LINEAR
from appliance.router.answers import ANSWER_NAMES
from appliance.router.learn import Learner, Outcome, Shown
from appliance.router.route import route
from appliance.router.score import SIZE, Basis, Prior, shape_in
from appliance.router.types import Place, Policy, Prices, StepFacts, TargetFacts
from appliance.types import Label
from router_lib import metrics, offline
from router_lib.data import Outcomes

OUTCOMES = 500
_PRIOR_STRENGTH = 30.0


def fitted_prior(sets: list[Outcomes], version: str = "2") -> Prior:
    """Parameters to start from: spread of shapes and answers, and weights that all sets agree on,
    each set counting alike, held small so that a user's own outcomes soon outweigh them."""
    start = untrained(sets)
    basis = Basis(start.centre, start.spread)
    questions = [offline.inputs_before(basis, each) for each in sets]
    base = np.array([np.mean([mark(each, side).mean() for each in sets]) for side in Place])
    weights = _agreed(questions, sets)
    answered = [
        (each, offline.inputs_after(each, inputs))
        for each, inputs in zip(sets, questions, strict=True)
        if each.answers.size
    ]
    after = _agreed([inputs for _, inputs in answered], [each for each, _ in answered])
    for name, step in GUESSED.items():
        at = 1 + ANSWER_NAMES.index(name)
        after[0, at] = step / LINEAR
    return replace(start, base=base, weights=weights, after=after, version=version)


GUESSED = {"logprob": 0.10, "least_logprob": 0.03, "hedges": -0.03, "repeats": -0.06}
"""What no public set shows, guessed: points of P(right) of the local answer for one usual spread.
A user's own outcomes correct it."""

_GUESSED_SPREAD = {"logprob": 0.4, "least_logprob": 2.5, "hedges": 0.7, "repeats": 0.15}


def _agreed(inputs: list[np.ndarray], sets: list[Outcomes]) -> np.ndarray:
    """(2, inputs) weights of what each side's marks are above their set's mean."""
    weight = np.concatenate([np.full(len(each), 400 / len(each)) for each in sets])
    every = np.concatenate(inputs)
    weighed = every * weight[:, None]
    square = weighed.T @ every + _PRIOR_STRENGTH * np.eye(every.shape[1])
    found = []
    for side in Place:
        marks = [mark(each, side) for each in sets]
        residual = np.concatenate([each - each.mean() for each in marks])
        found.append(np.linalg.solve(square, weighed.T @ residual))
        found[-1][0] = 0.0
    return np.array(found)


def mark(data: Outcomes, side: Place) -> np.ndarray:
    return data.weak if side is Place.LOCAL else data.strong


def untrained(sets: list[Outcomes]) -> Prior:
    """The spread of shapes and answers and nothing else."""
    shapes = np.concatenate([each.shape for each in sets])
    answers = np.concatenate([each.answers for each in sets if each.answers.size])
    spread = answers.std(0) + 1e-3
    for name, usual in _GUESSED_SPREAD.items():
        spread[ANSWER_NAMES.index(name)] = usual
    return Prior(
        centre=shapes.mean(0),
        spread=shapes.std(0) + 1e-3,
        base=np.array([0.7, 0.85]),
        weights=np.zeros((2, SIZE)),
        answer_centre=answers.mean(0),
        answer_spread=spread,
        after=np.zeros((2, AFTER_SIZE)),
        version="untrained",
    )


def learning_after(sets: list[Outcomes], passes: int) -> dict[str, float]:
    """The same after generation, untrained, on each set alone: 500 local answers with the marks of
    both sides, then held-out answers in the order of the gain that the product expects."""
    found: dict[str, list[float]] = {}
    for seed in range(passes):
        draw = np.random.default_rng(seed)
        for data in sets:
            if not data.answers.size or not data.answers[:, ANSWER_NAMES.index("has_votes")].any():
                continue
            learner = Learner(untrained(sets))
            inputs = offline.inputs_before(learner.scorer.basis, data)
            held = data.fold(3, seed) == 0
            for row in draw.permutation(np.flatnonzero(~held))[:OUTCOMES]:
                shown = Shown(data.answers[row], "weak", data.groups[row])
                _learn(learner, data, inputs, row, data.groups[row], shown)
            told = [_gain(learner, data, inputs, row) for row in np.flatnonzero(held)]
            weak, strong = data.weak[held], data.strong[held]
            whole = offline.score([data], [np.flatnonzero(~held)], data, "after")[held]
            found.setdefault(f"online_after_{data.name}_{OUTCOMES}", []).append(
                metrics.ranked(np.array(told), weak, strong)
            )
            found.setdefault(f"online_after_{data.name}_offline", []).append(
                metrics.ranked(whole, weak, strong)
            )
    return {name: round(float(np.mean(values)), 4) for name, values in found.items()}


def _gain(learner: Learner, data: Outcomes, inputs: np.ndarray, row: int) -> float:
    """The gain expected of one answer, unclipped, so that sure ones keep their order."""
    scorer, agent = learner.scorer, data.groups[row]
    read = learner.after.inputs(data.answers[row], shape_in(inputs[row]), "weak", agent)
    expected = [
        scorer.expected(inputs[row], place, (f"agent/{agent}/{place.value}",))
        + learner.after.sides[place].mean(read)
        for place in Place
    ]
    return expected[1] - expected[0]


def _learn(
    learner: Learner,
    data: Outcomes,
    inputs: np.ndarray,
    row: int,
    agent: str,
    shown: Shown | None = None,
) -> None:
    """Both sides' marks of one row."""
    for place in Place:
        keys = (f"agent/{agent}/{place.value}",)
        right = float(mark(data, place)[row])
        learner.learn(Outcome(inputs[row], place, place.value, keys, right, 1.0, shown=shown))


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
            inputs = offline.inputs_before(learner.scorer.basis, data)
            held = data.fold(3, seed) == 0
            rows = draw.permutation(np.flatnonzero(~held))[:OUTCOMES]
            for row in rows:
                _learn(learner, data, inputs, row, name)
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
