"""What the daemon's placer knows of cards that are taken, from the core in mid-decision."""

from __future__ import annotations

from appliance.gpu.types import GIB, FixedFootprint
from appliance.gpu.wants import Want
from appliance.scheduler.core import Core
from appliance.scheduler.memory_placer import MemoryPlacer
from appliance.scheduler.values import (
    ConfigChanged,
    DeviceView,
    Effect,
    InstanceReady,
    InventoryChanged,
    Misfit,
    ModelSpec,
    Refuse,
    StartInstance,
    StepRequested,
)


def spec(name: str, size_gib: int, *, exclusive: bool = False) -> ModelSpec:
    want = Want(
        name, FixedFootprint(size_gib * GIB), 1024, exclusive=exclusive,
        allow_partial=False, allow_host=False,
    )  # fmt: skip
    return ModelSpec(name, demand=want)


def machine(*models: ModelSpec) -> Core:
    alone = {m.name for m in models if isinstance(m.demand, Want) and m.demand.exclusive}
    core = Core(MemoryPlacer(lambda: core.holdings(), alone.__contains__))
    cards = (DeviceView("GPU-a", 24 * GIB), DeviceView("GPU-b", 16 * GIB))
    core.handle(InventoryChanged(cards), 0.0)
    core.handle(ConfigChanged(models), 0.0)
    return core


def ask(core: Core, model: str, now_s: float) -> list[Effect]:
    """The step is asked for, and what starts is ready at once."""
    effects = core.handle(StepRequested(f"r{now_s}", "x", (model,)), now_s)
    for started in [e for e in effects if isinstance(e, StartInstance)]:
        effects += core.handle(InstanceReady(started.instance_id, 1.0, 1), now_s)
    return effects


def card_of(effects: list[Effect]) -> str:
    (card,) = [
        card for e in effects if isinstance(e, StartInstance) for card in e.fit.bytes_by_device
    ]
    return card


def test_nobody_is_placed_beside_an_exclusive_model() -> None:
    core = machine(spec("alone", 10, exclusive=True), spec("small", 2))
    assert card_of(ask(core, "alone", 1.0)) == "GPU-b", "the tightest card"
    assert card_of(ask(core, "small", 2.0)) == "GPU-a"


def test_an_exclusive_model_takes_no_card_that_somebody_has() -> None:
    core = machine(spec("small", 2), spec("alone", 10, exclusive=True))
    assert card_of(ask(core, "small", 1.0)) == "GPU-b"
    assert card_of(ask(core, "alone", 2.0)) == "GPU-a"


def test_words_for_a_refusal_are_found_when_somebody_reads_them() -> None:
    core = machine(spec("huge", 90))
    (refused,) = [e for e in ask(core, "huge", 1.0) if isinstance(e, Refuse)]
    assert "90.00 GiB" in refused.reason
    assert "more on GPU-a" in refused.reason
    placer = MemoryPlacer(core.holdings, lambda _: False)
    misfit = placer.place(spec("huge", 90), {"GPU-a": 24 * GIB})
    assert isinstance(misfit, Misfit)
    assert "90.00 GiB" in misfit.tell()
