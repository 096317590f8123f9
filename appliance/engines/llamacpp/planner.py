"""Which tokens go into the next decode: a pure function from the running sequences to a plan.

A decode is one pass over the weights whatever it carries, so every sequence that is generating
gets its one token each step: adding it costs little, leaving it out costs a whole pass. Prompts
are what can hurt: a long one put in whole makes every stream wait for it. So prompts get what is
left of a token budget, which is small while anything streams and a whole micro-batch while
nothing does. Within it: the more urgent first, then the older; no prompt overtakes an equal.

How many tokens that is depends on the machine (a CPU reads a hundred a second, a GPU ten
thousand), so the budget is meant in seconds and `Pace` turns it into tokens by what it has seen.

A decode runs under one LoRA adapter (it is set on the context), so a plan holds sequences of one
adapter: that of the sequence served longest ago among the most urgent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Runnable(NamedTuple):
    """A sequence that could use the next decode. (This and `Grant` are tuples: one of each is made
    for every token, and a frozen dataclass takes five times as long.)

    `pending_tokens` are known tokens not yet in its KV: 1 for a sequence that generates, the rest
    of the prompt for one in prefill. `last_served` and `arrival` are counters, lower is earlier.
    """

    sequence: int
    priority: int
    arrival: int
    pending_tokens: int
    is_streaming: bool
    last_served: int = -1
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Tokens in one decode at most; of them prompt tokens while any sequence streams, and while
    none does."""

    step_tokens: int
    prompt_tokens_beside_streams: int
    prompt_tokens_alone: int


class Grant(NamedTuple):
    """`tokens` of the sequence's pending ones go into this decode."""

    sequence: int
    tokens: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    adapter: str | None
    grants: tuple[Grant, ...]


SECONDS_BESIDE_STREAMS = 0.1
"""What a running stream's step may be lengthened by for other people's prompts."""
SECONDS_ALONE = 1.0
"""What one decode of prompts alone may take: a cancel waits this long, and so does a newcomer."""
LEAST_PROMPT_TOKENS = 16
"""However slow the machine: below it a pass over the weights carries almost nothing."""


LEAST_SEEN_TOKENS = 64
"""The first decode's prompt tokens, and the fewest that say something about the machine's pace."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Prompt tokens per second as seen so far, a running mean that forgets; None before the first
    prompt."""

    tokens_per_s: float | None = None

    def seen(self, tokens: int, seconds: float) -> Pace:
        """With one more decode of `tokens` prompt tokens taken in. A small one is not: it shows
        what a pass over the weights costs, not what a token does."""
        if tokens < LEAST_SEEN_TOKENS:
            return self
        rate = tokens / max(seconds, 1e-6)
        return Pace(rate if self.tokens_per_s is None else 0.8 * self.tokens_per_s + 0.2 * rate)

    def limits(self, step_tokens: int) -> Limits:
        """Budgets for the next decode, of which the batch holds `step_tokens` at most."""

        def tokens_in(seconds: float, least: int) -> int:
            wanted = least if self.tokens_per_s is None else int(self.tokens_per_s * seconds)
            return min(max(least, wanted), step_tokens)

        return Limits(
            step_tokens,
            tokens_in(SECONDS_BESIDE_STREAMS, LEAST_PROMPT_TOKENS),
            tokens_in(SECONDS_ALONE, LEAST_SEEN_TOKENS),
        )


def plan_step(runnable: Sequence[Runnable], limits: Limits) -> StepPlan | None:
    """The next decode, or None when nothing can run.

    Never more than `limits.step_tokens`; a streaming sequence of the chosen adapter is only left
    out when there are more of them than that.
    """
    if not runnable:
        return None
    leader = min(runnable, key=lambda r: (r.priority, r.last_served, r.arrival))
    group = [r for r in runnable if r.adapter == leader.adapter]
    streams = sorted((r for r in group if r.is_streaming), key=_urgency)
    prompts = sorted((r for r in group if not r.is_streaming), key=_urgency)
    grants = [Grant(r.sequence, 1) for r in streams[: limits.step_tokens]]
    budget = limits.prompt_tokens_beside_streams if grants else limits.prompt_tokens_alone
    room = min(budget, limits.step_tokens - len(grants))
    for prompt in prompts:
        if room <= 0:
            break
        taken = min(prompt.pending_tokens, room)
        grants.append(Grant(prompt.sequence, taken))
        room -= taken
    return StepPlan(leader.adapter, tuple(grants))


def _urgency(item: Runnable) -> tuple[int, int, int]:
    return (item.priority, item.last_served if item.is_streaming else 0, item.arrival)
