"""Placers that need no GPU room: for providers alone, and for models of one known size."""

from __future__ import annotations

from collections.abc import Mapping

from appliance.scheduler.values import Fit, Misfit, ModelSpec


class BestFit:
    """Puts a model of `demand` bytes on the device whose free bytes it leaves the least of."""

    def place(self, spec: ModelSpec, free: Mapping[str, int]) -> Fit | Misfit:
        assert isinstance(spec.demand, int), "BestFit reads the demand as bytes"
        roomy = [(amount, device) for device, amount in free.items() if amount >= spec.demand]
        if roomy:
            _, device = min(roomy)
            return Fit({device: spec.demand}, spec.slots)
        most = max(free.values(), default=0)
        reason = f"needs {spec.demand} bytes on one device, the emptiest has {most} free"
        return Misfit(reason, spec.demand - most)
