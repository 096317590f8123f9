"""How much of a device to leave to other programs: what they take counts at once, what they give
back counts only after it stayed free for a while.

A program that allocates in waves would otherwise make us unload and load with each wave. The held
value is the maximum over the last seconds, kept as a falling staircase. How many seconds is learnt on
each device: `calm_s` at first, half of that with each time the memory stayed away as long, twice as
much when it was taken again meanwhile.

A dead process of ours can look like such a wave: the driver drops it from its list before its
memory is free. What came back of ours in the same seconds is therefore taken off the staircase.
"""

from __future__ import annotations

import math
from collections import deque


LEAST_CALM = 0.25
"""Of `calm_s`: longer than a driver's readings lag, or a stale one would look like a wave."""


class ForeignHold:
    """Held foreign bytes per device."""

    def __init__(self, calm_s: float) -> None:
        self._calm_s = calm_s
        self._learnt_s: dict[str, float] = {}
        self._steps: dict[str, deque[tuple[float, int]]] = {}
        self._now: dict[str, int] = {}
        self._ours: dict[str, deque[tuple[float, int]]] = {}
        self._next_fall_s = math.inf
        self._changed = True

    def observe(self, device: str, foreign_bytes: int, now_s: float) -> None:
        """What the device shows now."""
        steps = self._steps.setdefault(device, deque())
        before = self._now.get(device, 0)
        if foreign_bytes < before:
            while steps and steps[-1][1] <= before:
                steps.pop()
            steps.append((now_s + self._learnt_s.get(device, self._calm_s), before))
        elif foreign_bytes > before and steps:
            self._learn(device, 2.0)
        self._now[device] = foreign_bytes
        self._changed = True

    def returned(self, device: str, bytes_: int, now_s: float) -> None:
        """So many bytes of a process of ours that died by itself are free again."""
        forgotten_s = now_s + 2 * self._calm_s  # after the last step that could have been these
        self._ours.setdefault(device, deque()).append((forgotten_s, bytes_))
        self._changed = True

    def held(self, device: str, now_s: float) -> int:
        """Bytes to leave alone at `now_s`."""
        steps, ours = self._steps.get(device, deque()), self._ours.get(device, deque())
        for queue in (steps, ours):
            while queue and queue[0][0] <= now_s:
                queue.popleft()
                self._changed = True
                if queue is steps:
                    self._learn(device, 0.5)
        wave = max((bytes_ for _, bytes_ in steps), default=0) - sum(bytes_ for _, bytes_ in ours)
        return max(self._now.get(device, 0), wave)

    def _learn(self, device: str, factor: float) -> None:
        calm_s = self._learnt_s.get(device, self._calm_s) * factor
        self._learnt_s[device] = min(max(calm_s, self._calm_s * LEAST_CALM), self._calm_s)

    def may_have_changed(self, now_s: float) -> bool:
        """Some held value may differ from what it was when last asked for."""
        return self._changed or self._next_fall_s <= now_s

    def next_fall_s(self) -> float:
        """When some held value may fall next; infinite if none will."""
        if self._changed:
            queues = (*self._steps.values(), *self._ours.values())
            self._next_fall_s = min((queue[0][0] for queue in queues if queue), default=math.inf)
            self._changed = False
        return self._next_fall_s
