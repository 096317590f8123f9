"""What the configuration says of a model, as the placer is asked for it: real headers."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config.load import load
from appliance.gpu.types import GIB, HOST, Device, Inventory
from appliance.gpu.wants import Placement, Want
from appliance.scheduler.wanted import model_specs
from tests.gpu.placing import place
from tests.gpu.sketches.catalogue import SKETCHES
from tests.gpu.sparse import write

CONFIG = """
[models.m]
engine = "llamacpp"
file = "llama-3.1-8b.gguf"
context_window = 4096
gpu_layers = {layers}

[agents.a]
models = ["m"]
"""

MACHINE = Inventory(
    (
        Device("gpu0", 0, "card", 24 * GIB, 0, 24 * GIB),
        Device(HOST, -1, "RAM", 64 * GIB, 0, 64 * GIB),
    ),
    0.0,
)


@pytest.mark.parametrize(
    ("layers", "on_card"), [('"auto"', 33), ("0", 0), ("1", 1), ("20", 20), ("33", 33), ("99", 33)]
)
def test_as_many_layers_as_configured_go_on_the_card(
    tmp_path: Path, layers: str, on_card: int
) -> None:
    write(SKETCHES["llama-3.1-8b"](), tmp_path)
    (tmp_path / "config.toml").write_text(CONFIG.format(layers=layers))
    (spec,) = model_specs(load(tmp_path / "config.toml"), tmp_path, {})
    assert isinstance(spec.demand, Want)
    placed = place(spec.demand, MACHINE, {})
    assert isinstance(placed, Placement)
    assert placed.gpu_layers == on_card
    assert (placed.cards == ("gpu0",)) == (on_card > 0)
