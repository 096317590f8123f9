"""*Did it?* in a running turn: read the finished answer, sample again where that is free, judge.

What a judged local answer showed is kept beside the step, so that its outcome teaches the score
after generation too. A step that was handed up on suspicion alone is compared with the cloud's
answer: only that tells whether the suspicion was right, and without it the score would confirm
itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from appliance.config.schema import Config
from appliance.errors import BudgetExceeded, EngineError, NoCapacity, Overloaded, PromptTooLong
from appliance.router.record import Decision
from appliance.router.said import is_same, said
from appliance.router.types import Candidate, Place, Route, StepFacts, TargetFacts
from appliance.router.verify import AnswerFacts, Judgement, judge, wants_second_sample
from appliance.turns.attempt import Attempts
from appliance.turns.learning import Learning
from appliance.turns.places import Places
from appliance.turns.ready import Ready, tuning_of
from appliance.types import Completion, Priority, StopReason

if TYPE_CHECKING:
    from appliance.router.learn import Shown

SECOND_PATIENCE = 2.0
"""A second sample is given up after this many times as long as the first took, and a second."""


@dataclass(frozen=True, slots=True)
class Judged:
    """`shown` is None for what was not learned from: a cloud answer, or no learned score."""

    judgement: Judgement
    answer: str
    shown: Shown | None = None


class Judging:
    """Judges answers of one daemon's steps. Keeps nothing."""

    def __init__(
        self,
        config: Callable[[], Config],
        attempts: Attempts,
        places: Places,
        learning: Learning,
    ) -> None:
        self._config = config
        self._attempts = attempts
        self._places = places
        self._learning = learning

    async def __call__(
        self, ready: Ready, step: StepFacts, decision: Decision, attempt: int, done: Completion
    ) -> Judged:
        """Judge an answer as it stands, or beside a second sample where one is worth drawing."""
        route = decision.outcome
        assert isinstance(route, Route)
        target = next(each for each in decision.targets if each.name == route.target)
        best = self._best_cloud(route)
        first = self._read(ready, step, decision, target, done, best, None)
        if target.place is Place.CLOUD or not wants_second_sample(
            first.judgement.answer,
            first.judgement.tuning,
            gpu_is_idle=self._is_idle(ready, target.name) and bool(first.answer),
            wait_s=(done.usage.prefill_ms + done.usage.decode_ms) / 1000,
            is_interactive=first.judgement.is_interactive,
        ):
            return first
        second = await self._second(ready, target.name, attempt, done)
        if second is None or not (other := _said(second)):
            return first
        return self._read(ready, step, decision, target, done, best, other)

    def _best_cloud(self, route: Route) -> Candidate | None:
        """The candidate that a local answer could be handed to."""
        if route.place is Place.CLOUD or not self._config().routing.escalate:
            return None
        cloud = [c for c in route.candidates if c.is_open and c.place is Place.CLOUD]
        return max(cloud, key=lambda each: each.worth, default=None)

    def _read(
        self,
        ready: Ready,
        step: StepFacts,
        decision: Decision,
        target: TargetFacts,
        done: Completion,
        best: Candidate | None,
        second: str | None,
    ) -> Judged:
        expected = decision.score.p_right(target)
        answer = _said(done)
        facts = AnswerFacts(
            p_right=expected,
            calls_valid=True if done.message.tool_calls else None,
            is_empty=not done.message.text.strip() and not done.message.tool_calls,
            was_refused=done.stop_reason is StopReason.REFUSAL,
            was_cut=done.stop_reason is StopReason.MAX_TOKENS,
            was_sampled_again=second is not None,
            cloud_right=None if best is None else best.p_right,
            cloud_cost_micro_usd=0 if best is None else best.cost_micro_usd,
            cloud_seconds=0.0 if best is None else best.seconds,
        )
        shown, because = None, {}
        if target.place is Place.LOCAL and self._learning.is_learned:
            shown = _shown(step, target.name, done, answer, second)
            after = self._learning.after(step, decision.score, target, shown)
            moved = after.cloud_right - decision.score.cloud_right
            facts = replace(
                facts,
                p_right=after.local_right,
                cloud_right=None if best is None else min(0.98, max(0.02, best.p_right + moved)),
            )
            because = dict(after.because)
        tuning = tuning_of(self._config(), ready.agent)
        is_interactive = ready.priority is Priority.INTERACTIVE
        verdict = judge(ready.policy, facts, tuning, is_interactive=is_interactive)
        version = decision.score.params_version
        judgement = Judgement(
            ready.policy, facts, tuning, is_interactive, verdict, expected, because, version
        )
        return Judged(judgement, answer, shown)

    def _is_idle(self, ready: Ready, name: str) -> bool:
        now = self._places.describe(
            (name,), ready.agent_name, ready.state.session_id, ready.left.spend_micro_usd
        )
        return all(each.is_resident and not each.queue and not each.wait_s for each in now)

    async def _second(
        self, ready: Ready, target: str, attempt: int, done: Completion
    ) -> Completion | None:
        """A second sample; None where it came to nothing, which is no news of the first."""
        took_s = (done.usage.prefill_ms + done.usage.decode_ms) / 1000
        try:
            async with asyncio.timeout(1.0 + SECOND_PATIENCE * took_s):
                return await self._attempts.again(ready, target, attempt)
        except (
            TimeoutError, EngineError, Overloaded, NoCapacity, PromptTooLong, BudgetExceeded,
        ):  # fmt: skip
            return None


def cloud_agrees(local: Judged, cloud: Completion) -> bool | None:
    """Whether the cloud's answer is the one that was handed up; None where neither tells."""
    return is_same(local.answer, _said(cloud))


def _said(done: Completion) -> str:
    calls = ((call.name, call.arguments) for call in done.message.tool_calls)
    return said(done.message.text, calls)


def _shown(step: StepFacts, model: str, done: Completion, answer: str, second: str | None) -> Shown:
    from appliance.router.answers import LocalAnswer, read_answer
    from appliance.router.learn import Shown

    text = done.message.text
    local = LocalAnswer(
        prompt=step.text,
        answer=answer,
        output_chars=len(text) or len(answer),
        others=() if second is None else (second,),
        text=text,
        is_call=bool(done.message.tool_calls),
        mean_logprob=done.mean_logprob,
        min_logprob=done.min_logprob,
    )
    return Shown(read_answer(local).astype(float), model, step.agent)
