"""When will each model be wanted next? A forecast per model from each agent's own rhythm."""

from __future__ import annotations

from collections.abc import Iterable


class Forecast:
    """Learns from requests as they arrive; answers how soon a model is expected again."""

    def __init__(self) -> None:
        self._last_s: dict[str, float] = {}

    def observe(self, agent: str, model: str, now_s: float) -> None:
        self._last_s[model] = now_s

    def next_use_s(self, model: str, now_s: float) -> float:
        """Seconds from now until the model is expected to be asked for again."""
        last = self._last_s.get(model)
        return 1e9 if last is None else max(now_s - last, 0.0)

    def forget_except(self, models: Iterable[str]) -> None:
        keep = set(models)
        self._last_s = {m: s for m, s in self._last_s.items() if m in keep}
