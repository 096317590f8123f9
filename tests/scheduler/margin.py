"""The margin that estimates need, for a placer whose footprints have none of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from appliance.gpu.footprint import ESTIMATE_MARGIN
from appliance.scheduler.values import Fit, Misfit, ModelSpec, Placer


class WithMargin:
    """Asks another placer for less than there is, and promises the margin on top of its answer.

    In thousandths and integers, so that what fits with its margin is never a byte too much.
    """

    def __init__(self, placer: Placer, margin: float = ESTIMATE_MARGIN / 1000) -> None:
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
