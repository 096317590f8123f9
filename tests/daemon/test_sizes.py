"""What loads really took is learnt, kept over a restart, and promised the next time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from appliance.daemon.sizes import FILE, Sizes
from appliance.gpu.footprint import ShapeFootprint
from appliance.gpu.host import host_device
from appliance.gpu.shape import read_shape
from appliance.gpu.types import GIB, MIB, Device, Inventory
from appliance.gpu.wants import Placement, Want
from appliance.scheduler.ledger import settled
from appliance.scheduler.memory_placer import MemoryPlacer
from appliance.scheduler.values import Fit, Holdings, ModelSpec
from tests.gpu.sketches.catalogue import SKETCHES
from tests.gpu.sparse import write

CARD = Device("GPU-1", 0, "card", 24 * GIB, 0, 24 * GIB)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(SKETCHES["llama-3.2-1b"](), tmp_path)


def inventory(driver: str = "580.10") -> Inventory:
    return Inventory((CARD, host_device()), 0.0, driver)


def placed(sizes: Sizes, model: Path) -> tuple[ModelSpec, Fit]:
    footprint = ShapeFootprint(read_shape(model), sizes.calibration, is_promise=True)
    spec = ModelSpec("m", demand=Want("m", footprint, 4096))
    placer = MemoryPlacer(lambda: Holdings({}, {}), lambda _: False)
    fit = placer.place(spec, {"GPU-1": 20 * GIB, "cpu": 20 * GIB})
    assert isinstance(fit, Fit)
    return spec, fit


async def test_what_a_load_took_is_promised_next_time_also_after_a_restart(
    model: Path, tmp_path: Path
) -> None:
    sizes = Sizes(tmp_path / "sizes", inventory())
    spec, fit = placed(sizes, model)
    promised = fit.bytes_by_device["GPU-1"]
    seen = promised + 700 * MIB
    sizes.learn(spec, fit, {"GPU-1": seen})
    async with asyncio.timeout(60):
        await anext(sizes.changes())
    again = Sizes(tmp_path / "sizes", inventory())
    assert again.calibration == sizes.calibration
    _, next_fit = placed(again, model)
    assert seen * 1.01 - 1 <= next_fit.bytes_by_device["GPU-1"] <= seen * 1.02


def test_with_another_driver_nothing_is_known(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sizes"
    folder.mkdir()
    (folder / FILE).write_text('{"environment": "570/other", "contexts": {}, "measured": []}')
    assert not Sizes(folder, inventory()).calibration.measured


@pytest.mark.parametrize("text", ["", "{", "[]", '{"environment": 1}'])
def test_a_file_that_is_no_calibration_is_left_aside(text: str, tmp_path: Path) -> None:
    folder = tmp_path / "sizes"
    folder.mkdir()
    (folder / FILE).write_text(text)
    assert not Sizes(folder, inventory()).calibration.measured


def test_less_than_the_buffers_is_not_taken_for_a_measurement(model: Path, tmp_path: Path) -> None:
    sizes = Sizes(tmp_path / "sizes", inventory())
    spec, fit = placed(sizes, model)
    sizes.learn(spec, fit, {"GPU-1": 100 * MIB})
    assert not sizes.calibration.measured
    assert not sizes.calibration.contexts


def test_a_measured_model_needs_a_smaller_margin(model: Path, tmp_path: Path) -> None:
    sizes = Sizes(tmp_path / "sizes", inventory())
    spec, fit = placed(sizes, model)
    assert isinstance(fit.placement, Placement)
    before = fit.bytes_by_device["GPU-1"]
    sizes.learn(spec, fit, {"GPU-1": before * 1000 // 1030})
    assert placed(sizes, model)[1].bytes_by_device["GPU-1"] < before


def test_an_instance_is_charged_what_was_promised_or_what_it_takes_and_one_per_cent() -> None:
    assert settled({"a": 1000, "b": 500}, {"a": 2000, "b": 100}, {"a": 5000}) == {
        "a": 2020,
        "b": 500,
    }
    assert settled({"a": 1000}, {}, {}) == {"a": 1000}
    assert settled({"a": 1000}, {"a": 995}, {"a": 2}) == {"a": 1002}, "no card is overdrawn for it"
    assert settled({"a": 1000}, {"a": 1100}, {"a": 2}) == {"a": 1100}, "what is there is there"
