"""Placers that need no GPU room, and the margin that estimates need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from appliance.scheduler.values import Fit, Misfit, ModelSpec, Placer


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


ESTIMATE_MARGIN = 0.03
"""Share by which an estimate may be low (docs/BENCHMARKS.md, estimate); promised on top of it until
a load shows what it really takes."""


class WithMargin:
    """Asks another placer for less than there is, and promises the margin on top of its answer.

    In thousandths and integers, so that what fits with its margin is never a byte too much.
    """

    def __init__(self, placer: Placer, margin: float = ESTIMATE_MARGIN) -> None:
        self._placer = placer
        self._thousandths = 1000 + round(margin * 1000)

    def place(self, spec: ModelSpec, free: Mapping[str, int], least: float = 0.0) -> Fit | Misfit:
        fit = self._placer.place(spec, self._usable(free), least)
        if isinstance(fit, Misfit):
            return fit
        promised = {
            device: -(-size * self._thousandths // 1000)
            for device, size in fit.bytes_by_device.items()
        }
        return replace(fit, bytes_by_device=promised)

    def fits(self, spec: ModelSpec, free: Mapping[str, int], least: float = 0.0) -> bool:
        return self._placer.fits(spec, self._usable(free), least)

    def _usable(self, free: Mapping[str, int]) -> dict[str, int]:
        return {device: size * 1000 // self._thousandths for device, size in free.items()}
