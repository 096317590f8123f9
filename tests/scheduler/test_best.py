"""A model that could be on a card is not put on the host because somebody idle has the card."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.gpu.types import GIB, HOST, Layout
from appliance.gpu.wants import Want
from appliance.scheduler.core import Core
from appliance.scheduler.memory_placer import MemoryPlacer
from appliance.scheduler.policy import Policy
from appliance.scheduler.together import parts
from appliance.scheduler.values import (
    ConfigChanged,
    DeviceView,
    Effect,
    Event,
    Grant,
    InstanceGone,
    InstanceReady,
    InventoryChanged,
    LeaseReleased,
    ModelSpec,
    Shared,
    ShareOut,
    StartInstance,
    StepRequested,
    StopInstance,
    Tick,
)

CARD, RAM = 24 * GIB, 256 * GIB


@dataclass(frozen=True)
class Layers:
    """A model of equal layers and nothing else."""

    total_bytes: int
    n_layers: int = 32

    def bytes_by_device(self, layout: Layout) -> tuple[int, ...]:
        layer = self.total_bytes // self.n_layers
        on_cards = [int(share) * layer for share in layout.shares]
        return (*on_cards, self.total_bytes - layout.gpu_layers * layer)

    def most_layers(self, layout: Layout, room_bytes: int) -> int:
        return room_bytes * self.n_layers // self.total_bytes

    def layer_table(self, layout: Layout) -> None:
        return None


def model(name: str, size_gib: int, *, pinned: bool = False) -> ModelSpec:
    """As a llama.cpp model with `gpu_layers = "auto"` is: anywhere, if need be."""
    want = Want(name, Layers(size_gib * GIB), 1024)
    return ModelSpec(name, demand=want, pinned=pinned, preload=pinned)


class Workstation:
    """One card of 24 GiB and plenty of RAM; a step takes no time, loads and stops neither."""

    def __init__(self, *models: ModelSpec) -> None:
        self.core = Core(
            MemoryPlacer(lambda: self.core.holdings(), lambda _: False),
            Policy(foreign_calm_s=10.0),
        )
        self.now_s = 0.0
        self.where: dict[str, dict[str, int]] = {}
        self.loads: list[str] = []
        self.slots: dict[str, int] = {}
        """Of each model's latest load."""
        self.foreign(0)
        self.send(ConfigChanged(models))

    def foreign(self, used: int) -> None:
        self.send(InventoryChanged((DeviceView("gpu0", CARD, used), DeviceView(HOST, RAM))))

    def serve(self, name: str) -> dict[str, int]:
        """One step on a model; where it ran, in bytes per device."""
        self.now_s += 60.0
        self.send(StepRequested(f"r{self.now_s}", "a", (name,)))
        return self.where[name]

    def send(self, event: Event) -> None:
        for effect in self.core.handle(event, self.now_s):
            self._do(effect)

    def _do(self, effect: Effect) -> None:
        match effect:
            case StartInstance():
                self.loads.append(effect.spec.name)
                self.slots[effect.spec.name] = effect.fit.slots
                self.where[effect.spec.name] = dict(effect.fit.bytes_by_device)
                self.send(InstanceReady(effect.instance_id, 1.0, effect.fit.slots))
            case ShareOut():
                self.send(Shared(effect.number, parts(effect.models, effect.capacity)))
            case StopInstance():
                self.send(InstanceGone(effect.instance_id))
            case Grant():
                self.send(LeaseReleased(effect.lease_id, 1, 0.1))


def test_two_models_that_fit_one_card_each_take_turns_on_it() -> None:
    here = Workstation(model("coder", 20), model("writer", 16))
    for name, size in (("coder", 20), ("writer", 16), ("coder", 20)):
        assert here.serve(name) == {"gpu0": size * GIB}, "not on the host, though it has room"
    assert here.loads == ["coder", "writer", "coder"]


def test_what_is_too_large_for_the_card_takes_nearly_all_of_it_or_makes_room() -> None:
    here = Workstation(model("huge", 48), model("coder", 16), model("small", 2))
    half = here.serve("huge")
    assert half["gpu0"] > 0.9 * CARD
    assert half[HOST] > 20 * GIB
    here.serve("coder")
    again = here.serve("huge")
    assert again["gpu0"] > 0.9 * CARD, "not with five layers beside an idle one"
    here.serve("coder")
    here.serve("small")
    assert here.loads.count("coder") == 2, "18 of 24 GiB hold both"


def test_a_few_layers_more_on_the_host_are_better_than_a_reload() -> None:
    here = Workstation(model("small", 2), model("huge", 48))
    here.serve("small")
    assert here.serve("huge")["gpu0"] > 0.75 * (CARD - 2 * GIB)
    here.serve("small")
    assert here.loads == ["small", "huge"]


def test_beside_a_pinned_model_the_host_is_the_best_there_is() -> None:
    here = Workstation(model("pinned", 22, pinned=True), model("coder", 20))
    assert here.serve("coder")[HOST] > 0
    assert here.loads == ["pinned", "coder"]


def test_what_went_to_the_host_for_another_program_comes_back_when_the_card_is_free() -> None:
    here = Workstation(model("coder", 20))
    here.foreign(23 * GIB)
    assert here.serve("coder")[HOST] > 10 * GIB, "better than not at all"
    here.foreign(0)
    assert here.loads == ["coder"], "not into a wave that may come again"
    here.now_s += 11.0
    here.send(Tick())
    assert here.loads == ["coder", "coder"]
    assert here.serve("coder") == {"gpu0": 20 * GIB}
