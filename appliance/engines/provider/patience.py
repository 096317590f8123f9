"""How long a call may be silent at each stage, and what it is waiting for right now.

Three deadlines, because one cannot serve: a provider that takes the connection and says nothing,
one that says nothing but pings, and one that stops in mid-sentence are three faults, and a single
long limit for a whole answer would find each of them minutes late.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from appliance.clock import Clock
from appliance.engines.provider.faults import Stage

CONNECT_S = 5.0
HEADERS_S = 30.0
FIRST_TOKEN_S = 90.0
NEXT_TOKEN_S = 60.0


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. `headers_s` from the request to the answer's head, connecting included;
    `first_token_s` from there to the first token, `next_token_s` between two; `answer_s` in all."""

    connect_s: float = CONNECT_S
    headers_s: float = HEADERS_S
    first_token_s: float = FIRST_TOKEN_S
    next_token_s: float = NEXT_TOKEN_S
    answer_s: float = 600.0

    @classmethod
    def within(cls, answer_s: float) -> Self:
        """The usual ones, none of them more than its share of what the whole call may take."""
        return cls(
            CONNECT_S,
            min(HEADERS_S, answer_s / 2),
            min(FIRST_TOKEN_S, answer_s / 2),
            min(NEXT_TOKEN_S, answer_s / 2),
            answer_s,
        )


class Waiting:
    """The clockwork of one call. `deadline_s` is the caller's, on the monotonic clock."""

    def __init__(self, patience: Patience, clock: Clock, deadline_s: float | None) -> None:
        self._patience = patience
        self._clock = clock
        self._started_s = clock.monotonic()
        self._last_s = self._started_s
        self._first_token_s: float | None = None
        ends_s = self._started_s + patience.answer_s
        self._ends_s = ends_s if deadline_s is None else min(ends_s, deadline_s)

    def progressed(self) -> None:
        """A token came."""
        self._last_s = self._clock.monotonic()
        if self._first_token_s is None:
            self._first_token_s = self._last_s

    def next(self, stage: Stage) -> tuple[Stage, float]:
        """What is waited for now, and for how many seconds more (0 when time is up)."""
        now_s = self._clock.monotonic()
        if stage is Stage.NEXT_TOKEN and self._first_token_s is None:
            stage = Stage.FIRST_TOKEN
        limit_s = {
            Stage.HEADERS: self._patience.headers_s,
            Stage.FIRST_TOKEN: self._patience.first_token_s,
            Stage.NEXT_TOKEN: self._patience.next_token_s,
        }[stage]
        until_s = self._last_s + limit_s
        if until_s > self._ends_s:
            return Stage.ANSWER, max(self._ends_s - now_s, 0.0)
        return stage, max(until_s - now_s, 0.0)

    @property
    def first_token_ms(self) -> int:
        end_s = self._last_s if self._first_token_s is None else self._first_token_s
        return int((end_s - self._started_s) * 1000)

    @property
    def decode_ms(self) -> int:
        if self._first_token_s is None:
            return 0
        return int((self._last_s - self._first_token_s) * 1000)
