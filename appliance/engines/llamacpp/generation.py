"""One running answer: its tokens, where it stands, its text pipeline and its timings."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from appliance.engines.chat.text import TextStream
from appliance.engines.llamacpp.prompt import Prepared
from appliance.engines.llamacpp.sampling import Sampler
from appliance.types import (
    Completion,
    Delta,
    GenerateRequest,
    StopReason,
    TokenLogprob,
    Usage,
)


@dataclass(slots=True, eq=False)
class Generation:
    """Mutable, owned by the loop alone. `tokens` is the prompt and what was generated;
    `n_past` of them are in the KV cache of `sequence` (-1 while it waits for one)."""

    request: GenerateRequest
    prepared: Prepared
    arrival: int
    received_s: float
    tokens: list[int] = field(init=False)
    sampler: Sampler | None = None
    sequence: int = -1
    n_past: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    last_served: int = -1
    started_s: float = 0.0
    first_token_s: float = 0.0
    text: TextStream = field(init=False)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokens = list(self.prepared.tokens)
        self.text = TextStream(self.prepared.stops)

    @property
    def prompt_tokens(self) -> int:
        return len(self.prepared.tokens)

    @property
    def pending_tokens(self) -> int:
        return len(self.tokens) - self.n_past

    @property
    def next_tokens(self) -> int:
        """Of the pending ones, those up to the checkpoint, where the cache is saved."""
        if self.n_past < self.prepared.checkpoint:
            return self.prepared.checkpoint - self.n_past
        return self.pending_tokens

    @property
    def is_streaming(self) -> bool:
        return self.output_tokens > 0 and self.pending_tokens == 1

    def take(self, piece: bytes) -> tuple[list[Delta], str | None]:
        """Deltas to show for one token's bytes, and the stop string it completed."""
        shown, stop = self.text.feed(piece, scans=self.prepared.parser.in_text)
        return (self.prepared.parser.feed(shown) if shown else []), stop

    def complete(
        self, reason: StopReason, stop: str | None, now_s: float
    ) -> tuple[list[Delta], Completion]:
        """The last deltas and the completion. A stop string found only in the held-back rest
        still counts."""
        deltas: list[Delta] = []
        if stop is None:
            rest, stop = self.text.finish()
            deltas = self.prepared.parser.feed(rest) if rest else []
            if stop is not None:
                reason = StopReason.STOP_SEQUENCE
        last_deltas, message, reason = self.prepared.parser.finish(reason)
        first = self.first_token_s or now_s
        usage = Usage(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            output_tokens=self.output_tokens,
            queue_ms=_ms(self.started_s - self.received_s),
            prefill_ms=_ms(first - self.started_s),
            decode_ms=_ms(now_s - first),
        )
        seen = [entry.logprob for entry in self.logprobs]
        # A stop that is the template's own end of turn is no stop sequence of the caller's.
        if stop is not None and stop not in self.request.sampling.stop:
            stop = None
            if reason is StopReason.STOP_SEQUENCE:
                reason = StopReason.END_TURN
        return deltas + last_deltas, Completion(
            message=message,
            stop_reason=reason,
            usage=usage,
            stop_sequence=stop,
            logprobs=tuple(self.logprobs) if self.request.sampling.logprobs is not None else (),
            mean_logprob=sum(seen) / len(seen) if seen else None,
            min_logprob=min(seen) if seen else None,
        )


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def now_s() -> float:
    """Monotonic seconds: the same clock as the daemon's deadlines on this machine."""
    return time.monotonic()
