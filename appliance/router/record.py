"""A decision or a judgement as JSON and back: all that went in and what came out, to replay it.

The prompt's text is not kept (the score already read it, and its numbers are here), so a record
of a private step holds nothing private.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from appliance.router.route import route
from appliance.router.types import (
    BreakerState,
    Candidate,
    NoRoute,
    Place,
    Policy,
    Prices,
    Reason,
    Rejection,
    Route,
    Score,
    StepFacts,
    TargetFacts,
    Tuning,
)
from appliance.router.verify import AnswerFacts, Escalate, EscalationReason, Judgement, Keep
from appliance.types import Json, Label

RECORD_VERSION = 1


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision with everything it depended on."""

    step: StepFacts
    targets: tuple[TargetFacts, ...]
    score: Score
    draw: float
    tuning: Tuning
    outcome: Route | NoRoute

    def replayed(self) -> Route | NoRoute:
        """The decision taken again from its inputs; equal to `outcome` if nothing changed."""
        return route(self.step, self.targets, self.score, self.draw, self.tuning)


def decided(
    step: StepFacts, targets: Sequence[TargetFacts], score: Score, draw: float, tuning: Tuning
) -> Decision:
    """Decide, and keep what the decision depended on (the text left out)."""
    outcome = route(step, targets, score, draw, tuning)
    return Decision(replace(step, text=""), tuple(targets), score, draw, tuning, outcome)


def decision_to_json(decision: Decision) -> dict[str, Json]:
    return {
        "version": RECORD_VERSION,
        "step": _plain(decision.step),
        "targets": [_plain(each) for each in decision.targets],
        "score": _plain(decision.score),
        "draw": decision.draw,
        "tuning": _plain(decision.tuning),
        "outcome": route_to_json(decision.outcome),
    }


def decision_from_json(body: Mapping[str, Json]) -> Decision:
    """The inverse of `decision_to_json`. Raises ValueError for a version it does not know."""
    if body["version"] != RECORD_VERSION:
        raise ValueError(f"a routing record of version {body['version']} is not known here")
    step = dict(body["step"])
    step["policy"], step["label"] = Policy(step["policy"]), Label(step["label"])
    for name in ("chain", "tool_names", "tool_shape"):
        step[name] = tuple(step.get(name, ()))
    return Decision(
        step=StepFacts(**step),
        targets=tuple(_target(each) for each in body["targets"]),
        score=Score(**body["score"]),
        draw=body["draw"],
        tuning=Tuning(**body["tuning"]),
        outcome=route_from_json(body["outcome"]),
    )


def route_to_json(found: Route | NoRoute) -> dict[str, Json]:
    """The route with its candidates; `worth` is written too, for readers, and read back by none."""
    candidates = [{**_plain(each), "worth": each.worth} for each in found.candidates]
    if isinstance(found, NoRoute):
        return {"target": None, "candidates": candidates}
    return {**_plain(found), "candidates": candidates}


def route_from_json(body: Mapping[str, Json]) -> Route | NoRoute:
    candidates = tuple(_candidate(each) for each in body["candidates"])
    if body["target"] is None:
        return NoRoute(candidates)
    return Route(
        target=body["target"],
        place=Place(body["place"]),
        candidates=candidates,
        reasons=tuple(Reason(each) for each in body["reasons"]),
        propensity=body["propensity"],
        params_version=body["params_version"],
    )


def judgement_to_json(judgement: Judgement) -> dict[str, Json]:
    return {"version": RECORD_VERSION, **_plain(judgement)}


def judgement_from_json(body: Mapping[str, Json]) -> Judgement:
    """The inverse of `judgement_to_json`. Raises ValueError for a version it does not know."""
    if body["version"] != RECORD_VERSION:
        raise ValueError(f"a judgement's record of version {body['version']} is not known here")
    verdict = body["verdict"]
    return Judgement(
        policy=Policy(body["policy"]),
        answer=AnswerFacts(**body["answer"]),
        tuning=Tuning(**body["tuning"]),
        is_interactive=body["is_interactive"],
        verdict=Escalate(**{**verdict, "reason": EscalationReason(verdict["reason"])})
        if "reason" in verdict
        else Keep(**verdict),
        expected=body["expected"],
        because=body["because"],
        params_version=body["params_version"],
    )


def _target(body: Mapping[str, Any]) -> TargetFacts:
    return TargetFacts(
        **{
            **body,
            "place": Place(body["place"]),
            "prices": Prices(**body["prices"]),
            "breaker": BreakerState(body["breaker"]),
            "max_label": Label(body["max_label"]),
        }
    )


def _candidate(body: Mapping[str, Any]) -> Candidate:
    fields = {name: value for name, value in body.items() if name != "worth"}
    fields["place"] = Place(fields["place"])
    fields["rejections"] = tuple(Rejection(each) for each in fields["rejections"])
    return Candidate(**fields)


def _plain(value: Any) -> Any:
    """A frozen value as what `json` writes: enums by value, tuples as lists."""
    if dataclasses.is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
