"""One step: route it, lease a slot, fit the prompt, generate, judge; retry or fall back.

This is the one retry loop of the whole product. Engines and clients below report each failure
once; what it means (`router.retry`) and where to go instead (`router.route`) is settled here.
What was streamed of an attempt that failed is void: `step.failed` tells the followers so.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, replace
from typing import Protocol

from appliance.clock import Clock
from appliance.config.agents import AgentConfig
from appliance.config.schema import Config
from appliance.engines.base import Engine
from appliance.errors import (
    ApplianceError,
    BadRequest,
    CutStream,
    DeadlineExceeded,
    EngineError,
    NoCapacity,
    Overloaded,
    Refused,
)
from appliance.router import retry
from appliance.router.explain import explain, explain_verdict
from appliance.router.record import Decision, decided, decision_to_json
from appliance.router.types import (
    NoRoute,
    Place,
    Policy,
    Rejection,
    Route,
    Score,
    StepFacts,
    Tuning,
    bounded_text,
)
from appliance.router.verify import AnswerFacts, Escalate, Keep, judge
from appliance.scheduler.dispatcher import Lease, LeaseRequest
from appliance.turns import events as ev
from appliance.turns.limits import Left
from appliance.turns.live import LiveTurn
from appliance.turns.places import Health, Places, provider_of
from appliance.turns.prompt import Fitted, estimate_tokens, fit
from appliance.turns.state import CallModel, TurnState
from appliance.types import (
    Completion,
    Delta,
    GenerateRequest,
    ImageBlock,
    Label,
    Message,
    Priority,
    Progress,
    Role,
    Sampling,
    StopReason,
    ToolResultBlock,
    ToolSpec,
    Usage,
    highest,
    text_message,
)
from appliance.wire.native import message_to_json, usage_to_json

ATTEMPTS_MAX = 8
"""Attempts at one step over all targets: three at each of two providers, and two local ones."""

LOCAL_RETRIES = 1
"""A crashed worker is tried once more; then the step goes elsewhere or fails."""

OUTPUT_SHARE = 4
"""At least 1/4 of a window is kept for the answer unless less was asked for."""

DEFAULT_ANSWER_TOKENS = 1024

COUNT_FROM_SHARE = 0.5
"""Prompts estimated below this share of the window are not counted before they are sent."""


class Scorer(Protocol):
    """The learned score; `router.score` bound by the daemon."""

    def score(self, step: StepFacts) -> Score: ...


class Hold(Protocol):
    """Money promised for one call. Settled to the bill; released if never settled."""

    async def settle(self, usage: Usage) -> None: ...

    async def release(self) -> None: ...


class Spending(Protocol):
    """The money side of the one ledger (`scheduler.budgets`)."""

    async def reserve(
        self, *, agent: str, session_id: str, turn_id: str, micro_usd: int, cloud_tokens: int
    ) -> Hold:
        """Raises `BudgetExceeded` naming the cap."""
        ...


class History(Protocol):
    async def earlier(self, state: TurnState, enough_tokens: int) -> tuple[Message, ...]:
        """The session's messages before this turn, oldest first; at least `enough_tokens`
        (estimated) of them, the newest ones, where there are as many."""
        ...


class Tools(Protocol):
    async def learn(self, agent: str) -> None:
        """Find out what the agent's MCP servers offer, where that is not known yet."""
        ...

    def specs(self, agent: str) -> tuple[ToolSpec, ...]: ...


class Leases(Protocol):
    def lease(self, need: LeaseRequest) -> AbstractAsyncContextManager[Lease]: ...


class _Preempted(EngineError):
    """The lease was taken back at a more urgent step's need."""

    code = "preempted"


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What stays the same over all attempts at a step."""

    agent_name: str
    agent: AgentConfig
    state: TurnState
    step: int
    system: tuple[Message, ...]
    earlier: tuple[Message, ...]
    current: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    label: Label
    left: Left
    deadline_s: float

    @property
    def messages(self) -> tuple[Message, ...]:
        return (*self.system, *self.earlier, *self.current)


class Steps:
    """Makes steps. Stateless between them but for the shared `health` of providers."""

    def __init__(
        self,
        *,
        config: Callable[[], Config],
        leases: Leases,
        places: Places,
        health: Health,
        scorer: Scorer,
        spending: Spending,
        history: History,
        tools: Tools,
        clock: Clock,
        chance: random.Random,
    ) -> None:
        self._config = config
        self._leases = leases
        self._places = places
        self._health = health
        self._scorer = scorer
        self._spending = spending
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

    async def _until_answered(self, turn: LiveTurn, ready: _Prepared, move: CallModel) -> None:
        failures: dict[str, int] = {}
        last_error: ApplianceError | None = None
        escalated = False
        for attempt in range(move.attempt, move.attempt + ATTEMPTS_MAX):
            given_up = frozenset(name for name, count in failures.items() if count < 0)
            decision = self._decide(ready, given_up, escalated)
            if isinstance(decision.outcome, NoRoute):
                raise last_error or _refused(decision.outcome)
            target = decision.outcome.target
            await turn.append(
                ev.StepRouted(
                    step=move.step, attempt=attempt, target=target,
                    route={**decision_to_json(decision), "why": explain(decision.outcome)},
                )
            )  # fmt: skip
            try:
                done = await self._attempt(turn, ready, target, attempt)
            except (EngineError, Overloaded, NoCapacity) as error:
                last_error = error
                await turn.append(_attempt_failed(move.step, attempt, target, error))
                failures[target] = await self._after(error, target, failures.get(target, 0), ready)
                continue
            verdict = self._judge(ready, decision, done)
            if isinstance(verdict, Escalate) and not escalated:
                escalated = True
                await turn.append(_escalated(move.step, attempt, target, verdict, done))
                continue
            await turn.append(_completed(move.step, attempt, target, done, verdict))
            return
        assert last_error is not None
        raise last_error

    # --- preparing ------------------------------------------------------------------------------

    async def _prepare(self, state: TurnState, step: int, left: Left) -> _Prepared:
        config = self._config()
        name = state.accepted.agent
        agent = config.agents.get(name)
        if agent is None:
            raise BadRequest(f"agent {name!r} is no longer configured", hint="appliance agents")
        windows = [config.models[m].context_window for m in agent.models if m in config.models]
        earlier = await self._history.earlier(state, max(windows, default=0))
        current = state.messages()
        system = (text_message(Role.SYSTEM, agent.system_prompt),) if agent.system_prompt else ()
        await self._tools.learn(name)
        label = highest(agent.label, state.label, *(message.label for message in earlier))
        return _Prepared(
            agent_name=name,
            agent=agent,
            state=state,
            step=step,
            system=system,
            earlier=earlier,
            current=current,
            tools=self._tools.specs(name),
            label=label,
            left=left,
            deadline_s=self._clock.monotonic() + left.turn_s,
        )

    def _decide(self, ready: _Prepared, given_up: frozenset[str], escalated: bool) -> Decision:
        config, state = self._config(), ready.state
        chain = (state.accepted.model,) if state.accepted.model else ready.agent.models
        chain = tuple(name for name in chain if name not in given_up)
        facts = self._facts(ready, chain, escalated)
        targets = self._places.describe(chain, ready.agent_name, state.session_id)
        tuning = tuning_of(config, ready.agent)
        score = self._scorer.score(facts)
        decision = decided(facts, targets, score, self._chance.random(), tuning)
        if _forecast_alone_shuts(decision.outcome):
            # Only a tokenizer knows what fits, and only time tells what is late: rather try.
            facts = replace(facts, prompt_tokens=0, max_output_tokens=0, time_left_s=None)
            decision = decided(facts, targets, score, self._chance.random(), tuning)
        return decision

    def _facts(self, ready: _Prepared, chain: tuple[str, ...], escalated: bool) -> StepFacts:
        state, step = ready.state, ready.step
        done = [each for each in state.steps if each.message is not None]
        results = [call.result for each in done[-1:] for call in each.calls if call.result]
        last_call = done[-1].calls[-1].call.name if done and done[-1].calls else None
        asks = next((m.text for m in reversed(ready.current) if m.text), "")
        policy = state.accepted.policy or ready.agent.policy.value
        return StepFacts(
            agent=ready.agent_name,
            policy=Policy(policy),
            label=ready.label,
            chain=chain,
            prompt_tokens=estimate_tokens(ready.messages) + _tool_tokens(ready.tools),
            max_output_tokens=_answer_tokens(ready),
            text=bounded_text(asks),
            needs_tools=bool(ready.tools),
            needs_images=any(_has_image(message) for message in ready.messages),
            n_tools=len(ready.tools),
            tool_names=tuple(tool.name for tool in ready.tools),
            last_tool=last_call,
            last_tool_failed=any(result.is_error for result in results),
            failures_in_a_row=_failures_in_a_row(state),
            step_index=step,
            turn_steps_limit=self._config().limits_of(ready.agent_name).steps_max,
            history_target=done[-1].target if done else None,
            in_tool_loop=bool(results),
            escalated=escalated or any(each.route.get("escalated") for each in done),
            time_left_s=ready.deadline_s - self._clock.monotonic(),
            air_gap=self._config().network.air_gap,
            interactive=_priority(ready) is Priority.INTERACTIVE,
            session_id=state.session_id,
            turn_id=state.turn_id,
        )

    # --- one attempt ----------------------------------------------------------------------------

    async def _attempt(
        self, turn: LiveTurn, ready: _Prepared, target: str, attempt: int
    ) -> Completion:
        """One generation on one target. Raises `EngineError` and its kin, `Overloaded`,
        `NoCapacity`, `PromptTooLong`, `BudgetExceeded`."""
        priority = _priority(ready)
        need = LeaseRequest(
            request_id=f"{turn.turn_id}.{ready.step}.{attempt}",
            agent=ready.agent_name,
            models=(target,),
            priority=priority,
            deadline_s=ready.deadline_s,
            weight=ready.agent.weight,
            session=ready.state.session_id,
            prompt_tokens=estimate_tokens(ready.messages),
            max_tokens=_answer_tokens(ready),
            preemptible=priority is Priority.BACKGROUND,
            progress=_Saying(turn, ready.step),
        )
        self._health.started(target)
        async with self._leases.lease(need) as lease:
            turn.say(ready.step, Progress("prefill"))
            fitted, request = await self._request(turn, ready, target, lease.engine, need)
            async with aclosing(self._charged(ready, target, fitted, request, lease)) as items:
                done = await self._listen(turn, ready.step, items, lease)
            usage = replace(
                done.usage,
                queue_ms=max(lease.queue_ms - lease.load_ms, 0),
                load_ms=lease.load_ms,
            )
            lease.report(usage)
        self._health.succeeded(target, provider_of(self._config().models[target]), 1)
        return replace(done, usage=usage)

    async def _request(
        self, turn: LiveTurn, ready: _Prepared, target: str, engine: Engine, need: LeaseRequest
    ) -> tuple[Fitted, GenerateRequest]:
        window = engine.facts.context_window
        answer = min(_answer_tokens(ready), window // OUTPUT_SHARE)
        fitted = await _fitted(ready, engine, window, window - answer)
        if fitted.is_compacted:
            await turn.append(_compacted(ready.step, target, fitted, window))
        sampling = merged(
            self._config().models[target].sampling.to_sampling(),
            ready.agent.sampling.to_sampling(),
        )
        room = max(window - fitted.prompt_tokens, 1) if fitted.prompt_tokens else window
        most = min(sampling.max_tokens or room, room, ready.left.output_tokens)
        limit = getattr(self._config().models[target], "max_output_tokens", None)
        return fitted, GenerateRequest(
            request_id=need.request_id,
            messages=fitted.messages,
            tools=ready.tools,
            sampling=replace(sampling, max_tokens=min(most, limit) if limit else most),
            thinking=ready.agent.thinking,
            priority=need.priority,
            cache_key=ready.state.session_id,
            adapter=ready.agent.adapter or None,
            deadline_s=ready.deadline_s,
            label=ready.label,
            agent=ready.agent_name,
            turn_id=ready.state.turn_id,
        )

    async def _charged(
        self,
        ready: _Prepared,
        target: str,
        fitted: Fitted,
        request: GenerateRequest,
        lease: Lease,
    ) -> AsyncGenerator[Delta | Completion, None]:
        """The engine's stream, with money reserved before it and settled after it."""
        prices = getattr(self._config().models[target], "prices", None)
        if prices is None:
            async for item in lease.engine.generate(request):
                yield item
            return
        prompt = fitted.prompt_tokens or estimate_tokens(fitted.messages) * 2
        output = request.sampling.max_tokens or DEFAULT_ANSWER_TOKENS
        rate = max(prices.input_micro_usd, prices.cache_write_micro_usd)
        hold = await self._spending.reserve(
            agent=ready.agent_name,
            session_id=ready.state.session_id,
            turn_id=ready.state.turn_id,
            micro_usd=-(-(prompt * rate + output * prices.output_micro_usd) // 1_000_000),
            cloud_tokens=prompt + output,
        )
        try:
            async for item in lease.engine.generate(request):
                if isinstance(item, Completion):
                    await hold.settle(item.usage)
                yield item
        finally:
            await hold.release()

    async def _listen(
        self, turn: LiveTurn, step: int, items: AsyncIterator[Delta | Completion], lease: Lease
    ) -> Completion:
        async for item in items:
            if isinstance(item, Completion):
                return item
            turn.say(step, item)
            if lease.preempted.is_set():
                raise _Preempted("a more urgent step needed the slot")
        raise CutStream(f"{lease.model} ended its answer without its proper end")

    # --- after an attempt -----------------------------------------------------------------------

    async def _after(
        self, error: ApplianceError, target: str, failures: int, ready: _Prepared
    ) -> int:
        """Count a failure of a target; waits before a retry. Negative means: not there again."""
        if isinstance(error, _Preempted):
            return failures
        model = self._config().models.get(target)
        if model is None or not isinstance(error, EngineError):
            return -1
        details = error.details
        failure = retry.classify(
            details.get("status"), details.get("type"), details.get("error_code")
        )
        if not error.retryable and "status" not in details:
            return -1
        self._health.failed(target, failure, error.message)
        provider = provider_of(model)
        if provider == "this machine":
            return failures + 1 if failures < LOCAL_RETRIES else -1
        verdict = retry.decide(
            retry.Attempt(
                failure,
                failures,
                retry_after_s=error.retry_after_s,
                should_retry=details.get("should_retry"),
                time_left_s=ready.deadline_s - self._clock.monotonic(),
            ),
            self._health.budget(provider),
            self._chance.random(),
        )
        if isinstance(verdict, retry.GiveUp):
            return -1
        self._health.spend(provider, verdict.budget)
        await asyncio.sleep(verdict.wait_s)
        return failures + 1

    def _judge(self, ready: _Prepared, decision: Decision, done: Completion) -> Keep | Escalate:
        assert not isinstance(decision.outcome, NoRoute)
        cloud = [c for c in decision.outcome.candidates if c.is_open and c.place is Place.CLOUD]
        best = max(cloud, key=lambda each: each.worth, default=None)
        if decision.outcome.place is Place.CLOUD or not self._config().routing.escalate:
            best = None
        answer = AnswerFacts(
            is_empty=not done.message.text.strip() and not done.message.tool_calls,
            was_refused=done.stop_reason is StopReason.REFUSAL,
            was_cut=done.stop_reason is StopReason.MAX_TOKENS,
            mean_logprob=done.mean_logprob,
            min_logprob=done.min_logprob,
            output_chars=len(done.message.text),
            cloud_right=None if best is None else best.p_right,
            cloud_cost_micro_usd=0 if best is None else best.cost_micro_usd,
            cloud_seconds=0.0 if best is None else best.seconds,
        )
        return judge(
            Policy(ready.state.accepted.policy or ready.agent.policy.value),
            answer,
            tuning_of(self._config(), ready.agent),
            is_interactive=_priority(ready) is Priority.INTERACTIVE,
        )


# --- leaves -------------------------------------------------------------------------------------


class _Saying:
    """A waiter's progress, told to the turn's followers."""

    def __init__(self, turn: LiveTurn, step: int) -> None:
        self._turn = turn
        self._step = step

    def put_nowait(self, item: Progress, /) -> None:
        self._turn.say(self._step, item)


def tuning_of(config: Config, agent: AgentConfig) -> Tuning:
    """What the owner says answers, seconds and switches are worth, in the router's units."""
    routing = config.routing
    value = max(int(routing.quality_usd * agent.quality_weight * 1_000_000), 1)
    second = int(routing.second_usd * 1_000_000)
    return Tuning(
        value_micro_usd=value,
        second_micro_usd=second,
        background_second_micro_usd=second // 40,
        switch_margin=routing.switch_usd * 1_000_000 / value,
        explore=routing.explore_share,
    )


def merged(*samplings: Sampling) -> Sampling:
    """The samplings laid over one another; what a later one says wins."""
    result = Sampling()
    for sampling in samplings:
        said = {
            name: value
            for name in Sampling.__dataclass_fields__
            if (value := getattr(sampling, name)) is not None and value != () and value != {}
        }
        result = replace(result, **said)
    return result


async def _fitted(ready: _Prepared, engine: Engine, window: int, budget: int) -> Fitted:
    estimate = estimate_tokens(ready.messages) + _tool_tokens(ready.tools)
    if estimate < window * COUNT_FROM_SHARE:
        return Fitted(ready.messages, 0, 0)
    asking = fit(ready.system, ready.earlier, ready.current, budget)
    messages = next(asking)
    while True:
        try:
            messages = asking.send(await engine.count_tokens(messages, ready.tools))
        except StopIteration as stop:
            fitted: Fitted = stop.value
            return fitted


def _priority(ready: _Prepared) -> Priority:
    asked = ready.state.accepted.priority
    own = Priority[ready.agent.priority.upper()]
    return own if asked is None else Priority(max(asked, own))


def _answer_tokens(ready: _Prepared) -> int:
    wanted = ready.agent.sampling.max_tokens or DEFAULT_ANSWER_TOKENS
    return min(wanted, ready.left.output_tokens)


def _tool_tokens(tools: Sequence[ToolSpec]) -> int:
    return sum(len(tool.description) + len(str(dict(tool.input_schema))) for tool in tools) // 3


def _has_image(message: Message) -> bool:
    return any(
        isinstance(block, ImageBlock)
        or (
            isinstance(block, ToolResultBlock)
            and any(isinstance(part, ImageBlock) for part in block.content)
        )
        for block in message.blocks
    )


def _failures_in_a_row(state: TurnState) -> int:
    count = 0
    for step in reversed(state.steps):
        results = [call.result for call in step.calls if call.result is not None]
        if results and not all(result.is_error for result in results):
            break
        count += len(results)
    return count


def _forecast_alone_shuts(outcome: Route | NoRoute) -> bool:
    """No target is open, and some are shut by nothing but an estimate."""
    return isinstance(outcome, NoRoute) and any(
        each.rejections and set(each.rejections) <= {Rejection.WINDOW, Rejection.DEADLINE}
        for each in outcome.candidates
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
    step: int, attempt: int, target: str, verdict: Escalate, done: Completion
) -> ev.StepEscalated:
    return ev.StepEscalated(
        step=step,
        attempt=attempt,
        target=target,
        reason=explain_verdict(verdict),
        message=message_to_json(done.message),
        usage=usage_to_json(done.usage),
    )


def _completed(
    step: int, attempt: int, target: str, done: Completion, verdict: Keep | Escalate
) -> ev.StepCompleted:
    return ev.StepCompleted(
        step=step,
        attempt=attempt,
        target=target,
        message=message_to_json(done.message),
        stop_reason=done.stop_reason.value,
        usage=usage_to_json(done.usage),
        mean_logprob=done.mean_logprob,
        verdict=explain_verdict(verdict),
    )


def _compacted(step: int, target: str, fitted: Fitted, window: int) -> ev.HistoryCompacted:
    return ev.HistoryCompacted(
        step=step,
        target=target,
        dropped_messages=fitted.dropped_messages,
        shortened_results=fitted.shortened_results,
        prompt_tokens_before=fitted.tokens_before,
        prompt_tokens_after=fitted.prompt_tokens,
        window_tokens=window,
    )
