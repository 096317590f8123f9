"""Back-off and breaker of one model: crashes are retried with pauses, a series of them is not."""

from __future__ import annotations

from dataclasses import dataclass, field

from appliance.scheduler.policy import Policy

MAX_DOUBLINGS = 4
"""Of the pause after a start that found no room: another program may stay for hours, and each try
costs a process; a quarter of a minute late is soon enough."""


@dataclass(slots=True)
class Breaker:
    """Crash times of the last window. Closed lets starts pass, open names its reason."""

    policy: Policy
    crashes_s: list[float] = field(default_factory=list)
    reason: str = ""
    broken: bool = False
    retry_at_s: float = 0.0
    """No start is tried before."""
    declines: int = 0
    """In a row."""

    def crashed(self, reason: str, now_s: float) -> None:
        """Counts a crash; the third in the window opens the breaker."""
        since_s = now_s - self.policy.breaker_window_s
        self.crashes_s = [at for at in self.crashes_s if at > since_s] + [now_s]
        self.reason = reason
        count = len(self.crashes_s)
        pause_s = self.policy.backoff_s * (1 << (count - 1)) if count > 1 else 0.0
        if count >= self.policy.breaker_crashes:
            pause_s = self.policy.breaker_open_s
        self.retry_at_s = now_s + pause_s

    def declined(self, reason: str, now_s: float) -> None:
        """A start that found no room after all: no crash, and tried again, each time later."""
        self.reason = reason
        self.retry_at_s = now_s + self.policy.backoff_s * (1 << min(self.declines, MAX_DOUBLINGS))
        self.declines += 1

    def loaded(self) -> None:
        """There was room."""
        self.declines = 0

    def broke(self, reason: str) -> None:
        """The model cannot be started as configured; only a new configuration helps."""
        self.reason, self.broken = reason, True

    def is_open(self, now_s: float) -> bool:
        """Requests are refused: it crashed too often, or is broken."""
        crashed_often = len(self.crashes_s) >= self.policy.breaker_crashes
        return self.broken or (crashed_often and now_s < self.retry_at_s)

    def retry_in_s(self, now_s: float) -> float:
        """Seconds until a start may be tried; zero when now."""
        return max(self.retry_at_s - now_s, 0.0)
