"""Which tokens go into the next decode: a pure function from the running sequences to a plan.

A decode is one pass over the weights whatever it carries, so every sequence that is generating
gets its one token each step: adding it costs little, leaving it out costs a whole pass. Prompts
are what can hurt: a long one put in whole makes every stream wait for it. So prompts get what is
left of a token budget, which is small while anything streams and a whole micro-batch while
nothing does. Within it: the more urgent first, then the older; no prompt overtakes an equal.

A decode runs under one LoRA adapter (it is set on the context), so a plan holds sequences of one
adapter: that of the sequence served longest ago among the most urgent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Runnable:
    """A sequence that could use the next decode.

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
    """Tokens in one decode at most, and of them prompt tokens while any sequence streams."""

    step_tokens: int
    prompt_tokens_beside_streams: int


@dataclass(frozen=True, slots=True)
class Grant:
    """`tokens` of the sequence's pending ones go into this decode."""

    sequence: int
    tokens: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    adapter: str | None
    grants: tuple[Grant, ...]


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
    room = limits.step_tokens - len(grants)
    if grants:
        room = min(room, limits.prompt_tokens_beside_streams)
    for prompt in prompts:
        if room <= 0:
            break
        taken = min(prompt.pending_tokens, room)
        grants.append(Grant(prompt.sequence, taken))
        room -= taken
    return StepPlan(leader.adapter, tuple(grants))


def _urgency(item: Runnable) -> tuple[int, int, int]:
    return (item.priority, item.last_served if item.is_streaming else 0, item.arrival)
