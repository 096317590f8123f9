"""One step: route it, lease a slot, fit the prompt, generate, judge; retry or fall back.

This is the one retry loop of the whole product. Engines and clients below report each failure
once; what it means (`router.retry`) and where to go instead (`router.route`) is settled here.
What was streamed of an attempt that failed is void: `step.failed` tells the followers so.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from appliance.clock import Clock
from appliance.config.schema import Config
from appliance.errors import (
    ApplianceError,
    BadRequest,
    BudgetExceeded,
    DeadlineExceeded,
    EngineError,
    NoCapacity,
    Overloaded,
    Refused,
)
from appliance.router import retry
from appliance.router.explain import explain, explain_judgement
from appliance.router.record import Decision, decided, decision_to_json, judgement_to_json
from appliance.router.types import NoRoute, Place, Rejection, Route, StepFacts
from appliance.router.verify import Escalate, EscalationReason, Judgement
from appliance.tools import labels
from appliance.turns import events as ev
from appliance.turns.attempt import Attempts, Preempted
from appliance.turns.judging import Judged, Judging, cloud_agrees
from appliance.turns.learning import Learning, Taken
from appliance.turns.limits import Left
from appliance.turns.live import LiveTurn
from appliance.turns.places import THIS_MACHINE, Health, Places, provider_of
from appliance.turns.ready import Ready, step_facts, tuning_of
from appliance.turns.state import CallModel, TurnState
from appliance.types import (
    Completion,
    Label,
    Message,
    Role,
    ToolSpec,
    highest,
    text_message,
)
from appliance.wire.native import message_from_json, message_to_json, usage_to_json

ATTEMPTS_MAX = 20
"""Attempts at one step over all targets; what each of them may have is `[routing.retry]`'s."""

LOCAL_RETRIES = 1
"""A crashed worker is tried once more; then the step goes elsewhere or fails."""


class History(Protocol):
    async def earlier(
        self, state: TurnState, enough_tokens: int
    ) -> tuple[tuple[Message, ...], Label]:
        """The session's messages before this turn, oldest first, and their highest label; at
        least `enough_tokens` (estimated) of them, the newest, where there are as many."""
        ...


class Tools(Protocol):
    async def learn(self, agent: str) -> None:
        """Find out what the agent's MCP servers offer, where that is not known yet."""
        ...

    def specs(self, agent: str) -> tuple[ToolSpec, ...]: ...


@dataclass(slots=True)
class _Tries:
    """What became of one target within one step. `refund` is what its last retry cost the
    provider's budget, given back if it succeeds."""

    failures: int = 0
    refund: int = 0
    is_over: bool = False


class Steps:
    """Makes steps. Stateless between them but for the shared `health` of providers."""

    def __init__(
        self,
        *,
        config: Callable[[], Config],
        attempts: Attempts,
        places: Places,
        health: Health,
        learning: Learning,
        history: History,
        tools: Tools,
        clock: Clock,
        chance: random.Random,
    ) -> None:
        self._config = config
        self._attempts = attempts
        self._places = places
        self._health = health
        self._learning = learning
        self._judging = Judging(config, attempts, places, learning)
        self._history = history
        self._tools = tools
        self._clock = clock
        self._chance = chance

    async def __call__(self, turn: LiveTurn, move: CallModel, left: Left) -> None:
        """Make one model call and append its `step.completed`.

        Raises the last failure when no target is left, `Refused` when none was open,
        `PromptTooLong`, `DeadlineExceeded`, `StoreError`.
        """
        ready = await self._prepare(turn.state, move.step, left)
        try:
            async with asyncio.timeout(left.turn_s):
                await self._until_answered(turn, ready, move)
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the turn ran out of time in mid-step", hint="raise turn_s_max"
            ) from error

    async def _until_answered(self, turn: LiveTurn, ready: Ready, move: CallModel) -> None:
        tries: defaultdict[str, _Tries] = defaultdict(_Tries)
        last_error: ApplianceError | None = None
        handed_up: tuple[Taken, Judged] | None = None
        spendable = ready.left.spend_micro_usd + turn.state.spent_micro_usd
        for attempt in range(move.attempt, move.attempt + ATTEMPTS_MAX):
            left_micro_usd = spendable - turn.state.spent_micro_usd
            left = replace(ready.left, spend_micro_usd=left_micro_usd)
            ready = replace(self._as_sensitive_as_now(ready), left=left)
            given_up = frozenset(name for name, each in tries.items() if each.is_over)
            facts, decision = await self._decide(ready, given_up, handed_up is not None)
            if isinstance(decision.outcome, NoRoute):
                raise last_error or _refused(decision.outcome)
            target = decision.outcome.target
            await turn.append(_routed(move.step, attempt, decision))
            try:
                done = await self._try(turn, ready, target, attempt, tries[target])
            except (EngineError, Overloaded, NoCapacity, BudgetExceeded) as error:
                if isinstance(error, BudgetExceeded) and self._config().budgets.on_cap == "refuse":
                    raise
                last_error = error
                await turn.see_charges()
                await turn.append(_attempt_failed(move.step, attempt, target, error))
                elsewhere = _has_elsewhere(decision.outcome, self._config())
                await self._after(error, target, tries[target], ready, elsewhere)
                continue
            judged = await self._judging(ready, facts, decision, attempt, done)
            taken = _taken(facts, decision, judged)
            verdict = judged.judgement.verdict
            if isinstance(verdict, Escalate) and handed_up is None:
                handed_up = taken, judged
                await turn.append(_escalated(move.step, attempt, target, judged.judgement, done))
                if verdict.reason is not EscalationReason.UNLIKELY:
                    await self._learning.escalated(taken)
                continue
            await turn.append(_completed(move.step, attempt, target, done, judged.judgement))
            if handed_up is not None:
                taken = await self._compare(*handed_up, taken, done)
            await self._learning.answered(taken)
            return
        assert last_error is not None
        raise last_error

    # --- preparing ------------------------------------------------------------------------------

    async def _prepare(self, state: TurnState, step: int, left: Left) -> Ready:
        config = self._config()
        name = state.accepted.agent
        agent = config.agents.get(name)
        if agent is None:
            raise BadRequest(f"agent {name!r} is no longer configured", hint="appliance agents")
        windows = [config.models[m].context_window for m in agent.models if m in config.models]
        current = state.messages()
        bare = state.accepted.bare
        tools: tuple[ToolSpec, ...] = ()
        if bare is not None:
            earlier, said = tuple(map(message_from_json, bare.earlier)), Label.PUBLIC
            prompt = bare.system
        else:
            earlier, said = await self._history.earlier(state, max(windows, default=0))
            await self._tools.learn(name)
            prompt, tools = agent.system_prompt, self._tools.specs(name)
        system = (text_message(Role.SYSTEM, prompt),) if prompt else ()
        return Ready(
            agent_name=name,
            agent=agent,
            state=state,
            step=step,
            system=system,
            earlier=earlier,
            current=current,
            tools=tools,
            label=highest(agent.label, state.label, said),
            left=left,
            deadline_s=self._clock.monotonic() + left.turn_s,
        )

    def _as_sensitive_as_now(self, ready: Ready) -> Ready:
        """With what the configuration has come to call sensitive since things were said: read at
        each attempt, so that one after an edit does not send what the edit was to keep here."""
        config = self._config()
        agent = config.agents.get(ready.agent_name, ready.agent)
        since = highest(agent.label, labels.of_calls(config, ready.messages))
        return replace(ready, label=highest(ready.label, since))

    async def _decide(
        self, ready: Ready, given_up: frozenset[str], escalated: bool
    ) -> tuple[StepFacts, Decision]:
        """The facts (with the text, which the record leaves out) and the decision on them."""
        config = self._config()
        time_left_s = ready.deadline_s - self._clock.monotonic()
        facts = step_facts(ready, config, given_up, escalated, time_left_s)
        targets = self._places.describe(
            facts.chain, ready.agent_name, ready.state.session_id, ready.left.spend_micro_usd
        )
        tuning = tuning_of(config, ready.agent)
        score = await self._learning.score(facts, targets)
        decision = decided(facts, targets, score, self._chance.random(), tuning)
        if _shut_for_images(decision.outcome) and not ready.asks_with_images:
            facts = replace(facts, needs_images=False)
            decision = decided(facts, targets, score, self._chance.random(), tuning)
        if _forecast_alone_shuts(decision.outcome):
            # Only a tokenizer knows what fits, and only time tells what is late: rather try.
            facts = replace(facts, prompt_tokens=0, max_output_tokens=0, time_left_s=None)
            decision = decided(facts, targets, score, self._chance.random(), tuning)
        return facts, decision

    async def _try(
        self, turn: LiveTurn, ready: Ready, target: str, attempt: int, tries: _Tries
    ) -> Completion:
        number = self._health.started(target)
        try:
            done = await self._attempts.make(turn, ready, target, attempt)
        except BaseException as error:
            failure = _failure(error)
            if failure is None:
                self._health.ended(target, number)
            else:
                self._health.failed(target, number, failure, str(error))
            raise
        provider = provider_of(self._config().models[target])
        self._health.succeeded(target, number, provider, tries.refund)
        return done

    # --- after an attempt -----------------------------------------------------------------------

    async def _after(
        self,
        error: ApplianceError,
        target: str,
        tries: _Tries,
        ready: Ready,
        has_elsewhere: bool,
    ) -> None:
        """Settle whether a target that failed is tried again, and wait where it is."""
        if isinstance(error, Preempted):
            return
        tries.is_over = True
        model, failure = self._config().models.get(target), _failure(error)
        if model is None or failure is None:
            return
        provider = provider_of(model)
        if provider == THIS_MACHINE:
            tries.is_over = tries.failures >= LOCAL_RETRIES
            tries.failures += 1
            return
        verdict = retry.decide(
            retry.Attempt(
                failure,
                tries.failures,
                retry_after_s=error.retry_after_s,
                should_retry=error.details.get("should_retry"),
                time_left_s=ready.deadline_s - self._clock.monotonic(),
                has_elsewhere=has_elsewhere,
            ),
            self._health.budget(provider),
            self._chance.random(),
            self._config().routing.retry,
        )
        if isinstance(verdict, retry.GiveUp):
            return
        self._health.spend(provider, verdict.budget)
        tries.is_over, tries.failures, tries.refund = False, tries.failures + 1, verdict.refund
        await asyncio.sleep(verdict.wait_s)

    async def _compare(self, local: Taken, judged: Judged, taken: Taken, done: Completion) -> Taken:
        """Tell what the answer says of the local one that was handed up; the answer itself, where
        it is the cloud's, is an outcome of what that one showed."""
        if taken.target.place is not Place.CLOUD:
            return taken
        agrees = cloud_agrees(judged, done)
        verdict = judged.judgement.verdict
        is_suspicion = isinstance(verdict, Escalate) and verdict.reason is EscalationReason.UNLIKELY
        if is_suspicion and agrees is not None:
            await self._learning.compared(local, cloud_agrees=agrees)
        return replace(taken, shown=local.shown)


# --- leaves -------------------------------------------------------------------------------------


def _routed(step: int, attempt: int, decision: Decision) -> ev.StepRouted:
    assert isinstance(decision.outcome, Route)
    return ev.StepRouted(
        step=step,
        attempt=attempt,
        target=decision.outcome.target,
        route={**decision_to_json(decision), "why": explain(decision.outcome)},
    )


def _taken(facts: StepFacts, decision: Decision, judged: Judged) -> Taken:
    assert isinstance(decision.outcome, Route)
    target = next(each for each in decision.targets if each.name == decision.outcome.target)
    return Taken(facts, target, decision.outcome.propensity, judged.shown)


def _failure(error: BaseException) -> retry.Failure | None:
    """What an attempt's end says of the backend that was asked; None when nothing."""
    if not isinstance(error, EngineError) or isinstance(error, Preempted):
        return None
    details = error.details
    if not error.retryable and "status" not in details:
        return None
    return retry.classify(details.get("status"), details.get("type"), details.get("error_code"))


def _has_elsewhere(route: Route, config: Config) -> bool:
    """Whether a place other than the provider just asked is open to the step."""
    models = [config.models.get(each.target) for each in route.candidates if each.is_open]
    asked = config.models.get(route.target)
    providers = {provider_of(model) for model in (*models, asked) if model is not None}
    return len(providers) > 1


def _forecast_alone_shuts(outcome: Route | NoRoute) -> bool:
    """No target is open, and some are shut by nothing but an estimate."""
    return isinstance(outcome, NoRoute) and any(
        each.rejections and set(each.rejections) <= {Rejection.WINDOW, Rejection.DEADLINE}
        for each in outcome.candidates
    )


def _shut_for_images(outcome: Route | NoRoute) -> bool:
    """No target is open, and some would be if they could read images or if those were not."""
    return isinstance(outcome, NoRoute) and any(
        Rejection.IMAGES in each.rejections for each in outcome.candidates
    )


def _refused(outcome: NoRoute) -> Refused:
    lines = explain(outcome)
    return Refused(
        " ".join(lines),
        hint="appliance route try shows what would be needed",
        details={"reasons": {k: [r.value for r in v] for k, v in outcome.reasons.items()}},
    )


def _attempt_failed(step: int, attempt: int, target: str, error: ApplianceError) -> ev.StepFailed:
    return ev.StepFailed(step=step, attempt=attempt, target=target, error=error.to_json())


def _escalated(
    step: int, attempt: int, target: str, judgement: Judgement, done: Completion
) -> ev.StepEscalated:
    return ev.StepEscalated(
        step=step,
        attempt=attempt,
        target=target,
        reason=explain_judgement(judgement),
        message=message_to_json(done.message),
        usage=usage_to_json(done.usage),
        judgement=judgement_to_json(judgement),
    )


def _completed(
    step: int, attempt: int, target: str, done: Completion, judgement: Judgement
) -> ev.StepCompleted:
    return ev.StepCompleted(
        step=step,
        attempt=attempt,
        target=target,
        message=message_to_json(done.message),
        stop_reason=done.stop_reason.value,
        usage=usage_to_json(done.usage),
        mean_logprob=done.mean_logprob,
        verdict=explain_judgement(judgement),
        judgement=judgement_to_json(judgement),
    )
