"""Tasks of several steps with prompt-cache prices, decided by the router's own code.

A task draws all its steps from one kind of work; each step is a held-out row of that kind, whose
marks say what either side would have made of it. The conversation grows with every step; each
side's cache holds what that side has read; a side that comes back pays the write price for what it
missed. Scores are out of fold. Quality is the share of steps done right, spend what the cloud
would have billed. There are no public per-step outcome pairs, hence a simulation; it leaves out
that a wrong step spoils later ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from appliance.router.route import route
from appliance.router.types import (
    Place,
    Policy,
    Prices,
    Route,
    Score,
    StepFacts,
    TargetFacts,
    Tuning,
)
from appliance.router.verify import AnswerFacts, Escalate, judge
from appliance.router.worth import cost_micro_usd
from appliance.types import Label

TASKS = 400
SYSTEM_TOKENS = 3_000
LOCAL = TargetFacts("local", Place.LOCAL, 65_536, is_resident=True, tokens_per_s=60.0)
CLOUD = TargetFacts(
    "cloud",
    Place.CLOUD,
    200_000,
    prices=Prices(3_000_000, 15_000_000, 300_000, 3_750_000),
    first_token_s=1.0,
    prefill_tokens_per_s=20_000.0,
)


@dataclass(frozen=True)
class Kind:
    """Held-out rows of one kind of work: marks, and the gain expected before and after."""

    weak: np.ndarray
    strong: np.ndarray
    before: np.ndarray
    after: np.ndarray


@dataclass(frozen=True)
class Walk:
    quality: float
    spend_micro_usd: int
    switches: int
    local_share: float


Chooser = Callable[[StepFacts, Kind, int, float], tuple[Place, bool]]
"""(where, was it also tried locally first) for a step, a row of the kind, and a draw."""


def walk(kinds: list[Kind], choose: Chooser, seed: int = 0) -> Walk:
    """Run all tasks under one way of choosing."""
    draw = np.random.default_rng(seed)
    right, spend, switches, local, steps = 0.0, 0, 0, 0, 0
    for task in range(TASKS):
        kind = kinds[task % len(kinds)]
        step = _first_step()
        for index in range(int(draw.integers(4, 14))):
            row, chance = int(draw.integers(len(kind.weak))), float(draw.random())
            grown = int(draw.integers(300, 2_500))
            step = replace(
                step, prompt_tokens=step.prompt_tokens + grown, step_index=index, in_tool_loop=False
            )
            place, tried_locally = choose(step, kind, row, chance)
            name = place.value
            if place is Place.CLOUD:
                spend += cost_micro_usd(step, CLOUD)
            switches += step.history_target is not None and step.history_target != name
            local += place is Place.LOCAL
            steps += 1
            right += float((kind.weak if place is Place.LOCAL else kind.strong)[row])
            cached = {**step.cached_tokens, name: step.prompt_tokens}
            if tried_locally:
                cached["local"] = step.prompt_tokens
            step = replace(step, history_target=name, cached_tokens=cached)
    return Walk(right / steps, spend, switches, local / steps)


def always(place: Place) -> Chooser:
    return lambda step, kind, row, chance: (place, False)


def at_random(share: float) -> Chooser:
    return lambda step, kind, row, chance: (
        Place.CLOUD if chance < share else Place.LOCAL,
        False,
    )


def above(threshold: float) -> Chooser:
    """What a router for single questions does: threshold the score, forget the conversation."""
    return lambda step, kind, row, chance: (
        Place.CLOUD if kind.before[row] > threshold else Place.LOCAL,
        False,
    )


def ours(value_micro_usd: int) -> Chooser:
    """The product's own `route` before and `judge` after, at one value of a right answer."""
    tuning = Tuning(
        value_micro_usd=value_micro_usd, second_micro_usd=0, explore=0.0, switch_margin=0.0
    )

    def choose(step: StepFacts, kind: Kind, row: int, chance: float) -> tuple[Place, bool]:
        high = float(kind.strong.mean())
        score = Score(local_right=high - float(kind.before[row]), cloud_right=high)
        found = route(step, (LOCAL, CLOUD), score, chance, tuning)
        assert isinstance(found, Route)
        if found.place is Place.CLOUD:
            return Place.CLOUD, False
        cost = next(c.cost_micro_usd for c in found.candidates if c.place is Place.CLOUD)
        facts = AnswerFacts(
            p_right=high - float(kind.after[row]), cloud_right=high, cloud_cost_micro_usd=cost
        )
        verdict = judge(step.policy, facts, tuning)
        return (Place.CLOUD if isinstance(verdict, Escalate) else Place.LOCAL), True

    return choose


def cheapest_at(
    kinds: list[Kind], ways: list[Chooser], quality: float
) -> tuple[Walk | None, list[Walk]]:
    """Of several settings of one way, the cheapest that keeps the quality; and all of them."""
    walks = [walk(kinds, way) for way in ways]
    good = [each for each in walks if each.quality >= quality]
    return min(good, key=lambda each: each.spend_micro_usd, default=None), walks


def _first_step() -> StepFacts:
    return StepFacts(
        agent="sim",
        policy=Policy.BALANCED,
        label=Label.PUBLIC,
        chain=("local", "cloud"),
        prompt_tokens=SYSTEM_TOKENS,
        max_output_tokens=400,
    )
