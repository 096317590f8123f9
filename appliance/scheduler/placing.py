"""A placer that needs no GPU room."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from appliance.scheduler.values import Fit, Misfit, ModelSpec


class BestFit:
    """Puts a model of `demand` bytes on the device whose free bytes it leaves the least of."""

    def place(self, spec: ModelSpec, free: Mapping[str, int], least: float = 0.0) -> Fit | Misfit:
        assert isinstance(spec.demand, int), "BestFit reads the demand as bytes"
        roomy = [(amount, device) for device, amount in free.items() if amount >= spec.demand]
        if roomy:
            _, device = min(roomy)
            return Fit({device: spec.demand}, spec.slots)
        return Misfit(partial(_too_large, spec.demand, free))

    def fits(self, spec: ModelSpec, free: Mapping[str, int], least: float = 0.0) -> bool:
        assert isinstance(spec.demand, int), "BestFit reads the demand as bytes"
        return max(free.values(), default=-1) >= spec.demand


def _too_large(needed: int, free: Mapping[str, int]) -> str:
    most = max(free.values(), default=0)
    return f"needs {needed} bytes on one device, the emptiest has {most} free"
