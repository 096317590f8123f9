"""One attempt at a step on one target: lease, fit the prompt, reserve money, generate."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from functools import partial
from typing import Protocol

from appliance.config.models import ClaudeModel, RemoteModel, is_cloud, reached
from appliance.config.schema import Config
from appliance.engines.base import Engine
from appliance.errors import CutStream, EngineError
from appliance.scheduler.leases import Lease, LeaseRequest
from appliance.turns import events as ev
from appliance.turns.hedge import FirstWords, first_to_speak
from appliance.turns.limits import check_spend
from appliance.turns.live import LiveTurn
from appliance.turns.prompt import Fitted, fit, most_tokens
from appliance.turns.ready import (
    DEFAULT_ANSWER_TOKENS,
    TOOL_CHARS_PER_TOKEN,
    Ready,
    tool_tokens,
)
from appliance.types import (
    Completion,
    Delta,
    GenerateRequest,
    Priority,
    Progress,
    Sampling,
    Usage,
)

OUTPUT_SHARE = 4
"""At most a quarter of a window is kept for the answer when the history must shrink for it."""

BOUGHT_BYTES_PER_TOKEN = 2
"""A provider's count is a request over the network, so it is asked only where less than this would
not do; its vocabularies are large, and nothing there comes close to a token a byte."""

UNCOUNTED_FACTOR = 2
"""Money is reserved for this many times an estimated prompt, so that the bill is never above."""


SECOND_TEMPERATURE = 0.7
"""Of a second sample; at the first's own, often zero, it would say the same again."""


class Leases(Protocol):
    def lease(self, need: LeaseRequest) -> AbstractAsyncContextManager[Lease]: ...


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

    def gpu_ms_left(self, agent: str, session_id: str) -> int | None:
        """Milliseconds of slots that caps leave; None where none is set."""
        ...

    async def charge_gpu(
        self, *, agent: str, session_id: str, turn_id: str, gpu_ms: int
    ) -> None: ...


class Preempted(EngineError):
    """The lease was taken back at a more urgent step's need."""

    code = "preempted"


class Attempts:
    """Makes attempts. Each reports its failure once, as an error; what follows is not its."""

    def __init__(
        self,
        config: Callable[[], Config],
        leases: Leases,
        spending: Spending,
        may_hedge: Callable[[str], bool],
    ) -> None:
        """`may_hedge` takes a second request from the retry budget of a model's provider, or
        refuses it."""
        self._config = config
        self._leases = leases
        self._spending = spending
        self._may_hedge = may_hedge
        self._first_words = FirstWords()

    async def make(self, turn: LiveTurn, ready: Ready, target: str, number: int) -> Completion:
        """One generation on one target. Raises `EngineError` and its kin, `Overloaded`,
        `NoCapacity`, `PromptTooLong`, `BudgetExceeded`."""
        name = f"{ready.state.turn_id}.{ready.step}.{number}"
        saying = _Saying(turn, ready.step)
        need = replace(_need(ready, target, name, ready.priority), progress=saying)
        async with self._leases.lease(need) as lease:
            turn.say(ready.step, Progress("prefill"))
            fitted, request = await self._request(ready, target, lease.engine, need)
            if fitted.is_compacted:
                window = lease.engine.facts.context_window
                await turn.append(_compacted(ready.step, target, fitted, window))
            async with aclosing(self._items(ready, target, fitted, request, lease)) as items:
                done = await _listen(items, lease, partial(turn.say, ready.step))
            usage = replace(
                done.usage,
                queue_ms=max(lease.queue_ms - lease.load_ms, 0),
                load_ms=lease.load_ms,
            )
            lease.report(usage)
        if self._bought_from(target) is not None:
            await turn.see_charges()
        await self._charge_slot(ready, target, usage)
        return replace(done, usage=usage)

    async def again(self, ready: Ready, target: str, number: int) -> Completion:
        """A second sample of a local answer, told to nobody, at the background's priority and
        preemptible. Raises as `make`."""
        name = f"{ready.state.turn_id}.{ready.step}.{number}.second"
        need = _need(ready, target, name, Priority.BACKGROUND)
        async with self._leases.lease(need) as lease:
            fitted, request = await self._request(ready, target, lease.engine, need)
            request = replace(request, sampling=_varied(request.sampling))
            async with aclosing(self._charged(ready, target, fitted, request, lease)) as items:
                done = await _listen(items, lease)
            lease.report(done.usage)
        await self._charge_slot(ready, target, done.usage)
        return done

    async def _charge_slot(self, ready: Ready, target: str, usage: Usage) -> None:
        """Book the time a local slot was used, where a cap on it is set."""
        is_bought = self._bought_from(target) is not None
        agent, session_id = ready.agent_name, ready.state.session_id
        if not is_bought and self._spending.gpu_ms_left(agent, session_id) is not None:
            await self._spending.charge_gpu(
                agent=agent,
                session_id=session_id,
                turn_id=ready.state.turn_id,
                gpu_ms=usage.prefill_ms + usage.decode_ms,
            )

    def _bought_from(self, target: str) -> RemoteModel | ClaudeModel | None:
        """The provider behind a model that runs elsewhere; None for what runs here."""
        model = self._config().models.get(target)
        return None if model is None else reached(target, model)

    async def _request(
        self, ready: Ready, target: str, engine: Engine, need: LeaseRequest
    ) -> tuple[Fitted, GenerateRequest]:
        window = engine.facts.context_window
        answer = min(ready.answer_tokens, window // OUTPUT_SHARE)
        model = self._config().models[target]
        if not getattr(model, "images", False):
            ready = ready.in_words()
        if is_cloud(model):
            ready = ready.for_the_cloud()
        provider = self._bought_from(target)
        fitted = await _fitted(ready, engine, window - answer, is_bought=provider is not None)
        sampling = merged(model.sampling.to_sampling(), ready.agent.sampling.to_sampling())
        room = max(window - fitted.prompt_tokens, 1)
        most = min(sampling.max_tokens or room, room, ready.left.output_tokens)
        if provider is not None:
            most = min(most, provider.max_output_tokens)
        return fitted, GenerateRequest(
            request_id=need.request_id,
            messages=fitted.messages,
            tools=ready.tools,
            sampling=replace(sampling, max_tokens=most),
            thinking=ready.agent.thinking,
            priority=need.priority,
            cache_key=ready.state.session_id,
            adapter=ready.agent.adapter or None,
            deadline_s=ready.deadline_s,
            label=ready.label,
            agent=ready.agent_name,
            turn_id=ready.state.turn_id,
        )

    def _items(
        self, ready: Ready, target: str, fitted: Fitted, request: GenerateRequest, lease: Lease
    ) -> AsyncGenerator[Delta | Completion, None]:
        """The stream of one request, or of the faster of two where config asks for that."""
        if not self._config().routing.retry.hedge or self._bought_from(target) is None:
            return self._charged(ready, target, fitted, request, lease)

        def open_stream(number: int) -> AsyncGenerator[Delta | Completion, None]:
            mark = ".second" if number else ""
            named = replace(request, request_id=request.request_id + mark)
            stream = self._charged(ready, target, fitted, named, lease)
            return self._first_words.timed(target, stream)

        return first_to_speak(
            open_stream, self._first_words.slow_s(target), lambda: self._may_hedge(target)
        )

    async def _charged(
        self, ready: Ready, target: str, fitted: Fitted, request: GenerateRequest, lease: Lease
    ) -> AsyncGenerator[Delta | Completion, None]:
        """The engine's stream; what costs money is reserved before it and settled after it."""
        provider = self._bought_from(target)
        if provider is None:
            async for item in lease.engine.generate(request):
                yield item
            return
        prompt = fitted.prompt_tokens or ready.prompt_tokens * UNCOUNTED_FACTOR
        output = request.sampling.max_tokens or DEFAULT_ANSWER_TOKENS
        prices = provider.prices
        rate = max(prices.input_micro_usd, prices.cache_write_micro_usd)
        most = -(-(prompt * rate + output * prices.output_micro_usd) // 1_000_000)
        check_spend(ready.left, most)
        hold = await self._spending.reserve(
            agent=ready.agent_name,
            session_id=ready.state.session_id,
            turn_id=ready.state.turn_id,
            micro_usd=most,
            cloud_tokens=prompt + output,
        )
        try:
            async for item in lease.engine.generate(request):
                if isinstance(item, Completion):
                    await hold.settle(item.usage)
                yield item
        finally:
            await hold.release()


class _Saying:
    """A waiter's progress, told to the turn's followers."""

    def __init__(self, turn: LiveTurn, step: int) -> None:
        self._turn = turn
        self._step = step

    def put_nowait(self, item: Progress, /) -> None:
        self._turn.say(self._step, item)


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


def _need(ready: Ready, target: str, request_id: str, priority: Priority) -> LeaseRequest:
    """A slot of this model for the step; in the background it may be taken back."""
    return LeaseRequest(
        request_id=request_id,
        agent=ready.agent_name,
        models=(target,),
        priority=priority,
        deadline_s=ready.deadline_s,
        weight=ready.agent.weight,
        session=ready.state.session_id,
        prompt_tokens=ready.prompt_tokens,
        max_tokens=ready.answer_tokens,
        preemptible=priority is Priority.BACKGROUND,
    )


def _varied(sampling: Sampling) -> Sampling:
    """Warm enough that a second sample can differ from the first."""
    warm = max(sampling.temperature or 0.0, SECOND_TEMPERATURE)
    seed = None if sampling.seed is None else sampling.seed + 1
    return replace(sampling, temperature=warm, seed=seed)


async def _listen(
    items: AsyncIterator[Delta | Completion],
    lease: Lease,
    say: Callable[[Delta], None] = lambda delta: None,
) -> Completion:
    async for item in items:
        if isinstance(item, Completion):
            return item
        say(item)
        if lease.preempted.is_set():
            raise Preempted("a more urgent step needed the slot")
    raise CutStream(f"{lease.model} ended its answer without its proper end")


async def _fitted(ready: Ready, engine: Engine, budget: int, is_bought: bool) -> Fitted:
    """The history, counted by the engine's own tokenizer unless it fits whatever that says."""
    most = most_tokens(ready.messages) + tool_tokens(ready.tools) * TOOL_CHARS_PER_TOKEN
    if most // (BOUGHT_BYTES_PER_TOKEN if is_bought else 1) <= budget:
        return Fitted(ready.messages, 0, 0)
    asking = fit(ready.system, ready.earlier, ready.current, budget)
    messages = next(asking)
    while True:
        try:
            messages = asking.send(await engine.count_tokens(messages, ready.tools))
        except StopIteration as stop:
            fitted: Fitted = stop.value
            return fitted


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
