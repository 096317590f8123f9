"""The decode loop: admits, plans, decodes, samples; the one thread that touches the context.

One step: prompts that were prepared join (`_admit`), the planner says which tokens run, one
`llama_decode` runs them, every sequence that reached its last token draws the next. Sequences
join and leave between any two steps; a cancel takes effect before the next one.
"""

from __future__ import annotations

import logging
from typing import Protocol

from appliance.engines.llamacpp.binding import Adapter, Batch, Context, Model
from appliance.engines.llamacpp.generation import Generation, now_s
from appliance.engines.llamacpp.kv_cache import KvCache
from appliance.engines.llamacpp.planner import Pace, Runnable, StepPlan, plan_step
from appliance.engines.llamacpp.said import Said
from appliance.engines.llamacpp.sampling import Sampler, logprob_of, settle
from appliance.errors import ApplianceError, DeadlineExceeded, EngineError
from appliance.types import Completion, Delta, Progress, StopReason

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Where the loop reports to; must not block."""

    def deltas(self, request_id: str, deltas: list[Delta]) -> None: ...

    def done(self, request_id: str, completion: Completion) -> None: ...

    def failed(self, request_id: str, error: ApplianceError) -> None: ...


class Loop:
    """Owns context, batch and sequences. Everything runs on the caller's thread."""

    def __init__(
        self,
        model: Model,
        context: Context,
        cache: KvCache,
        *,
        slots: int,
        step_tokens: int,
        adapters: dict[str, Adapter],
        said: Said,
        sink: Sink,
    ) -> None:
        self._model = model
        self._context = context
        self._batch = Batch(context.batch_tokens)
        self._slots = slots
        self._step_tokens = step_tokens
        self._pace = Pace()
        self._adapters = adapters
        self._said = said
        self._adapter: str | None = None
        self._sink = sink
        self._cache = cache
        self._waiting: list[Generation] = []
        self._running: dict[int, Generation] = {}
        self._steps = 0
        self._is_crowded = False
        """An answer was set back for want of cells; nothing joins until one has left."""

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def submit(self, generation: Generation) -> None:
        self._waiting.append(generation)

    def cancel(self, request_id: str) -> None:
        """End it without a completion; its KV stays, as the beginning of whatever comes next."""
        self._waiting = [g for g in self._waiting if g.request.request_id != request_id]
        for generation in list(self._running.values()):
            if generation.request.request_id == request_id:
                self._leave(generation)

    def rest(self) -> None:
        """To be called once when idle: what a crash would lose is written behind."""
        self._cache.park_idle()

    def step(self) -> None:
        """At most one decode."""
        now = now_s()
        self._expire(now)
        self._admit()
        if self._running:
            self._cache.thin_out(now)
        plan = plan_step(
            [self._runnable(g) for g in self._running.values()],
            self._pace.limits(self._step_tokens),
        )
        if plan is None:
            return
        self._steps += 1
        if plan.adapter != self._adapter:
            self._context.use_adapter(self._adapters[plan.adapter] if plan.adapter else None)
            self._adapter = plan.adapter
        outputs = self._fill(plan)
        started_s = now_s()
        status = self._context.decode(self._batch)
        if status == 1:
            self._make_room()
            return
        if status != 0:
            raise EngineError(f"llama_decode failed with status {status}")
        if not any(generation.is_streaming for generation, _ in outputs):
            self._context.wait()
            tokens = sum(grant.tokens for grant in plan.grants)
            self._pace = self._pace.seen(tokens, now_s() - started_s)
        self._advance(plan)
        for generation, index in outputs:
            try:
                self._draw(generation, index)
            except Exception as error:  # the wall of one answer: the others go on
                self._fail(generation, _as_ours(error))

    def close(self) -> None:
        """Stop all, keep (parked) what they had computed."""
        for generation in list(self._running.values()):
            self._leave(generation)
        self._cache.close()
        self._batch.close()

    def _fill(self, plan: StepPlan) -> list[tuple[Generation, int]]:
        """Put the plan into the batch; returns whose next token is drawn at which index."""
        self._batch.clear()
        outputs: list[tuple[Generation, int]] = []
        for grant in plan.grants:
            generation = self._running[grant.sequence]
            end = generation.n_past + grant.tokens
            is_last = end == len(generation.tokens)
            index = self._batch.add(
                grant.sequence,
                generation.n_past,
                generation.tokens[generation.n_past : end],
                output=is_last,
            )
            if is_last:
                outputs.append((generation, index))
        return outputs

    def _advance(self, plan: StepPlan) -> None:
        """What was granted is in the cache now."""
        for grant in plan.grants:
            generation = self._running[grant.sequence]
            generation.n_past += grant.tokens
            generation.last_served = self._steps
            self._cache.advance(grant.sequence, generation.n_past)
            if generation.n_past == generation.prepared.checkpoint:
                self._cache.checkpoint(grant.sequence)
            if generation.pending_tokens:
                progress = Progress("prefill", generation.n_past, generation.prompt_tokens)
                self._sink.deltas(generation.request.request_id, [progress])

    def _runnable(self, generation: Generation) -> Runnable:
        return Runnable(
            sequence=generation.sequence,
            priority=int(generation.request.priority),
            arrival=generation.arrival,
            pending_tokens=generation.next_tokens,
            is_streaming=generation.is_streaming,
            last_served=generation.last_served,
            adapter=generation.request.adapter,
        )

    def _expire(self, now: float) -> None:
        for generation in [*self._waiting, *self._running.values()]:
            deadline_s = generation.request.deadline_s
            if deadline_s is not None and now > deadline_s:
                self._fail(generation, DeadlineExceeded("the step's deadline passed"))

    def _admit(self) -> None:
        """Start waiting prompts, the more urgent first, while there are slots."""
        if self._is_crowded and self._running:
            return
        self._waiting.sort(key=lambda g: (int(g.request.priority), g.arrival))
        for generation in list(self._waiting):
            if len(self._running) >= self._slots:
                return
            request = generation.request
            is_drawn = request.sampling.seed is not None and request.sampling.temperature != 0
            begin = self._cache.begin if self._running or not is_drawn else self._cache.begin_anew
            begun = begin(generation.tokens, request.adapter, request.cache_key)
            if begun is not None:
                self._waiting.remove(generation)
                self._begin(generation, *begun)

    def _begin(self, generation: Generation, sequence: int, in_kv: int) -> None:
        generation.sequence, generation.n_past = sequence, in_kv
        self._running[sequence] = generation
        if generation.sampler is None:
            generation.sampler = Sampler(self._model.vocab, settle(generation.request.sampling))
            generation.cached_tokens = in_kv
            generation.started_s = now_s()

    def _draw(self, generation: Generation, index: int) -> None:
        """Sample the next token of a sequence whose known tokens are all in the cache, and append
        what the constraint then leaves no choice about."""
        sampler, constraint = generation.sampler, generation.prepared.constraint
        assert sampler is not None
        if generation.output_tokens == 0:
            generation.first_token_s = now_s()
            for token in constraint.forced_tokens() if constraint is not None else ():
                sampler.accept(token)
                if not self._append(generation, token):
                    return
            if generation.output_tokens:
                return
        token = sampler.draw(self._context, index, constraint)
        alternatives = generation.request.sampling.logprobs
        if alternatives is not None:
            logits = self._context.logits(index)
            generation.logprobs.append(logprob_of(self._model.vocab, logits, token, alternatives))
        if not self._append(generation, token) or constraint is None:
            return
        for token in constraint.forced_tokens():
            sampler.accept(token)
            if not self._append(generation, token):
                return

    def _append(self, generation: Generation, token: int) -> bool:
        """Take one token into the answer; False when the answer is finished by it."""
        generation.tokens.append(token)
        generation.output_tokens += 1
        constraint = generation.prepared.constraint
        if constraint is not None:
            constraint.accept(token)
        if token in self._model.vocab.end_ids:
            self._finish(generation, StopReason.END_TURN, None)
            return False
        deltas, stop = generation.take(self._model.vocab.piece(token))
        if deltas:
            self._sink.deltas(generation.request.request_id, deltas)
        if stop is not None:
            self._finish(generation, StopReason.STOP_SEQUENCE, stop)
        elif constraint is not None and constraint.is_complete:
            self._finish(generation, StopReason.END_TURN, None)
        elif generation.output_tokens >= generation.prepared.max_tokens:
            self._finish(generation, StopReason.MAX_TOKENS, None)
        else:
            return True
        return False

    def _finish(self, generation: Generation, reason: StopReason, stop: str | None) -> None:
        try:
            deltas, completion = generation.complete(reason, stop, now_s())
        except ApplianceError as error:
            self._fail(generation, error)
            return
        self._leave(generation)
        self._remember(generation, completion)
        if deltas:
            self._sink.deltas(generation.request.request_id, deltas)
        self._sink.done(generation.request.request_id, completion)

    def _remember(self, generation: Generation, completion: Completion) -> None:
        """Keep the tokens of an answer that is plain text, whole."""
        tokens = generation.tokens[generation.prompt_tokens :]
        vocab = self._model.vocab
        if tokens and tokens[-1] in vocab.end_ids:
            tokens.pop()
        if not tokens or not vocab.control_ids.isdisjoint(tokens):
            return
        text = b"".join(map(vocab.piece, tokens)).decode("utf-8", "replace")
        if text == completion.message.text:
            self._said.remember(text, tokens)

    def _fail(self, generation: Generation, error: ApplianceError) -> None:
        if generation in self._waiting:
            self._waiting.remove(generation)
        else:
            self._leave(generation)
        self._sink.failed(generation.request.request_id, error)

    def _leave(self, generation: Generation) -> None:
        """Free the slot; what is in the cache stays for whoever shares its beginning."""
        del self._running[generation.sequence]
        self._is_crowded = False
        tokens = generation.tokens[: generation.n_past]
        self._cache.release(generation.sequence, tokens, now_s())
        if generation.sampler is not None:
            generation.sampler.close()
            generation.sampler = None

    def _make_room(self) -> None:
        """The cache is full: drop an idle conversation, else set a running one back."""
        if self._cache.make_room():
            return
        if len(self._running) == 1:
            (only,) = self._running.values()
            self._fail(
                only,
                EngineError(
                    f"the KV cache of {self._context.cells} tokens is full",
                    hint="raise kv_tokens, or lower context_window",
                ),
            )
            return
        victim = max(self._running.values(), key=lambda g: (int(g.request.priority), g.arrival))
        self._set_back(victim)

    def _set_back(self, victim: Generation) -> None:
        """Take its slot; it goes on later from its tokens, and keeps what it has said. Its cells
        become idle ones, which the next `_make_room` parks."""
        self._is_crowded = True
        del self._running[victim.sequence]
        self._cache.release(victim.sequence, victim.tokens[: victim.n_past], now_s())
        victim.sequence, victim.n_past = -1, 0
        self._waiting.append(victim)


def _as_ours(error: Exception) -> ApplianceError:
    if isinstance(error, ApplianceError):
        return error
    log.exception("an answer failed unexpectedly")
    return EngineError(f"unexpected failure while an answer was made: {error!r}")
