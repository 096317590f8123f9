"""How much of a device to leave to other programs: what they take counts at once, what they give
back counts only after it stayed free for a while.

A program that allocates in waves would otherwise make us unload and load with each wave. The held
value is the maximum over the last `calm_s` seconds, kept as a falling staircase.
"""

from __future__ import annotations

from collections import deque


class ForeignHold:
    """Held foreign bytes per device."""

    def __init__(self, calm_s: float) -> None:
        self._calm_s = calm_s
        self._steps: dict[str, deque[tuple[float, int]]] = {}
        self._now: dict[str, int] = {}

    def observe(self, device: str, foreign_bytes: int, now_s: float) -> None:
        """What the device shows now."""
        steps = self._steps.setdefault(device, deque())
        before = self._now.get(device, 0)
        if foreign_bytes < before:
            while steps and steps[-1][1] <= before:
                steps.pop()
            steps.append((now_s + self._calm_s, before))
        self._now[device] = foreign_bytes

    def held(self, device: str, now_s: float) -> int:
        """Bytes to leave alone at `now_s`."""
        steps = self._steps.get(device, deque())
        while steps and steps[0][0] <= now_s:
            steps.popleft()
        return max([self._now.get(device, 0), *(bytes_ for _, bytes_ in steps)])

    def next_fall_s(self) -> float | None:
        """When some held value may fall next."""
        return min((steps[0][0] for steps in self._steps.values() if steps), default=None)
