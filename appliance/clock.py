"""Time and identifiers as arguments: the only room that reads clocks or draws randomness."""

from __future__ import annotations

import secrets
import time
from typing import Protocol

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"


class Clock(Protocol):
    """A source of time. `monotonic` drives deadlines; `wall` only labels records."""

    def monotonic(self) -> float: ...

    def wall_ms(self) -> int: ...


class SystemClock:
    """The machine's clocks: monotonic seconds and milliseconds since 1970 (UTC)."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000


class VirtualClock:
    """A clock that moves only when told; for the simulator and for tests."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def monotonic(self) -> float:
        return self._now_s

    def wall_ms(self) -> int:
        return int(self._now_s * 1000)

    def advance_to(self, now_s: float) -> None:
        assert now_s >= self._now_s, "virtual time never goes back"
        self._now_s = now_s


def new_id(prefix: str) -> str:
    """`prefix_` and 20 characters: 8 of time (so ids sort by age), 12 of randomness (60 bits)."""
    value = (time.time_ns() // 1_000_000) & ((1 << 40) - 1)
    time_part = "".join(_CROCKFORD[(value >> shift) & 31] for shift in range(35, -1, -5))
    return f"{prefix}_{time_part}{''.join(secrets.choice(_CROCKFORD) for _ in range(12))}"
