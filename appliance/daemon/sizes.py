"""What loads really took: learnt from NVML, remembered over restarts, used by the next placement.

The calibration (`gpu.calibration`) lives in one small file beside the dry runs' answers, and holds
for one driver and one build of the library: with another it starts empty. Losing the file costs the
next loads a wider margin and nothing else, so it is written behind, whole, and never waited for by
a load.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from importlib import metadata
from pathlib import Path

from appliance.errors import NoCapacity
from appliance.gpu.calibration import Calibration, load_key
from appliance.gpu.footprint import ShapeFootprint
from appliance.gpu.oracle import Oracle
from appliance.gpu.types import GIB, Inventory, Layout, PlanParams
from appliance.gpu.wants import Placement, Want
from appliance.scheduler.values import Fit, ModelSpec

log = logging.getLogger(__name__)

FILE = "calibration.json"


class Sizes:
    """Owns the calibration. `folder` keeps it and the dry runs' answers."""

    def __init__(self, folder: Path, inventory: Inventory) -> None:
        self._file = folder / FILE
        cards = ",".join(sorted({card.name for card in inventory.gpus}))
        self._library = _library()
        self._device_kind = cards or "cpu"
        environment = f"{inventory.driver_version}/{self._library}"
        self._calibration = _read(self._file, environment)
        self._folder = folder
        self._changed = asyncio.Event()

    @property
    def calibration(self) -> Calibration:
        return self._calibration

    async def changes(self) -> AsyncIterator[None]:
        """Yields whenever something was learnt, once it is on disk."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await asyncio.to_thread(_write, self._file, self._calibration)
            except OSError as error:
                log.warning("%s is not written: %s", self._file, error)
            yield

    def learn(self, spec: ModelSpec, fit: Fit, seen: Mapping[str, int]) -> None:
        """Takes in what NVML shows of a loaded instance, by card."""
        asked = _asked(spec, fit)
        if asked is None:
            return
        footprint, plan = asked
        key = load_key(footprint.shape, plan)
        self._adopt(self._calibration.after_load(key, footprint.estimate_on(plan), seen))

    async def foresee(self, spec: ModelSpec, fit: Fit, path: Path) -> None:
        """For a model whose cache the formula does not describe: the library's own answer, before
        its first load in this configuration. Raises `NoCapacity` where it is more than promised;
        the next placement knows better.

        The dry run makes a CUDA context on the cards it asks about: that is inside the promise,
        for nothing of the model is loaded yet."""
        asked = _asked(spec, fit)
        if asked is None or asked[0].shape.is_exact:
            return
        footprint, plan = asked
        key = load_key(footprint.shape, plan)
        if self._calibration.needed(key, 0):
            return
        oracle = Oracle(self._folder, library=self._library, device_kind=self._device_kind)
        answer = await oracle.estimate(path, footprint.shape, plan)
        if answer.basis != "dry_run":
            return
        self._adopt(self._calibration.after_dry_run(key, answer))
        for card in plan.devices:
            needed, promised = answer.bytes_on(card), fit.bytes_by_device.get(card, 0)
            if needed > promised:
                raise NoCapacity(
                    f"{spec.name} needs {needed / GIB:.2f} GiB on {card} by a dry run, "
                    f"{promised / GIB:.2f} GiB were promised"
                )

    def _adopt(self, calibration: Calibration) -> None:
        if calibration != self._calibration:
            self._calibration = calibration
            self._changed.set()


def _asked(spec: ModelSpec, fit: Fit) -> tuple[ShapeFootprint, PlanParams] | None:
    """How the library is started for this load; None for what is not llama.cpp on cards."""
    placement, want = fit.placement, spec.demand
    if not isinstance(placement, Placement) or not isinstance(want, Want):
        return None
    if not isinstance(want.footprint, ShapeFootprint) or not placement.cards:
        return None
    layout = Layout(
        placement.context_window,
        placement.slots,
        placement.kv_type,
        placement.gpu_layers,
        placement.tensor_split,
    )
    return want.footprint, want.footprint.params(layout, placement.cards)


def _library() -> str:
    try:
        return f"llama-cpp-python {metadata.version('llama-cpp-python')}"
    except metadata.PackageNotFoundError:
        return "no llama-cpp-python"


def _read(file: Path, environment: str) -> Calibration:
    """What was kept; nothing where that is unreadable or of another driver or library."""
    try:
        return Calibration.from_json(json.loads(file.read_text()), environment)
    except FileNotFoundError:
        return Calibration(environment)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is not used: %s", file, error)
        return Calibration(environment)


def _write(file: Path, calibration: Calibration) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(calibration.to_json()))
    part.replace(file)
