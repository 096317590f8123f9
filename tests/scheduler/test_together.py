"""Models that fit side by side with fewer slots are loaded so, not in turn for ever."""

from __future__ import annotations

from dataclasses import dataclass, replace

from appliance.gpu.types import GIB, HOST, Layout
from appliance.gpu.wants import Want
from appliance.scheduler.together import parts
from appliance.scheduler.values import (
    ConfigChanged,
    ModelSpec,
    Tick,
    Use,
)
from tests.scheduler.test_best import CARD, RAM, Workstation

HERE = {"gpu0": CARD, HOST: RAM}


@dataclass(frozen=True)
class Roomy:
    """Weights, and a cache that grows with slots: what a window of 32k is to an 8B model."""

    weights_bytes: int
    slot_bytes: int
    n_layers: int = 32

    def bytes_by_device(self, layout: Layout) -> tuple[int, ...]:
        layer = (self.weights_bytes + layout.slots * self.slot_bytes) // self.n_layers
        on_cards = [int(share) * layer for share in layout.shares]
        return (*on_cards, (self.n_layers - layout.gpu_layers) * layer)

    def most_layers(self, layout: Layout, room_bytes: int) -> int:
        layer = (self.weights_bytes + layout.slots * self.slot_bytes) // self.n_layers
        return min(room_bytes // layer, self.n_layers)

    def layer_table(self, layout: Layout) -> None:
        return None


def chat(name: str, *, slots: int = 4, slots_min: int = 1, pinned: bool = False) -> ModelSpec:
    footprint = Roomy(4 * GIB, 4 * GIB)
    want = Want(name, footprint, 32768, slots, min_slots=slots_min)
    return ModelSpec(
        name, slots, demand=want, is_elastic=want.is_elastic, pinned=pinned, preload=pinned
    )


def test_two_models_with_four_slots_each_share_a_card_with_two() -> None:
    here = Workstation(chat("a"), chat("b"))
    assert here.serve("a") == {"gpu0": 20 * GIB}
    assert here.slots["a"] == 4, "alone it has all it wishes for"
    here.serve("b")
    assert here.slots["b"] == 4, "asked for once it takes nothing from the other for good"
    for model in "ababab":
        here.serve(model)
    loads = len(here.loads)
    for model in "abababababab":
        here.serve(model)
    assert len(here.loads) == loads, "nobody is loaded again once both are there"
    assert here.slots == {"a": 2, "b": 2}


def test_a_third_that_does_not_fit_beside_them_takes_turns() -> None:
    here = Workstation(chat("a"), chat("b"), chat("c", slots=4, slots_min=4))
    for model in "ababababc":
        here.serve(model)
    assert here.slots == {"a": 2, "b": 2, "c": 4}


def test_who_is_alone_again_has_all_it_wishes_for() -> None:
    here = Workstation(chat("a"), chat("b"))
    for model in "abababab":
        here.serve(model)
    here.send(ConfigChanged((chat("a"),)))
    here.serve("a")
    assert here.slots["a"] == 2, "not while it is used every minute"
    here.now_s += 61.0
    here.send(Tick())
    assert here.slots["a"] == 4


def test_after_an_edit_the_parts_are_found_anew() -> None:
    here = Workstation(chat("a"), chat("b"))
    for model in "abababab":
        here.serve(model)
    here.send(ConfigChanged((chat("a"), chat("b"), chat("c"))))
    parts_of = {name: state.part for name, state in here.core._book.models.items()}
    assert {name: part.slots for name, part in parts_of.items() if part} == {"a": 2, "b": 2}


def test_a_changed_model_waits_for_the_bytes_of_its_predecessor() -> None:
    here = Workstation(chat("a"))
    here.serve("a")
    here.send(ConfigChanged((replace(chat("a"), fingerprint="new"),)))
    here.serve("a")
    assert here.loads == ["a", "a"]
    assert here.slots["a"] == 4, "not with what was free beside it"


def test_a_part_is_a_wish_and_no_must() -> None:
    found = parts({chat("a"): Use(1.0, 1), chat("b"): Use(1.0, 2)}, HERE)
    assert {name: part.slots for name, part in found.items()} == {"a": 2, "b": 2}
    for part in found.values():
        assert isinstance(part.demand, Want)
        assert part.demand.min_slots == 1
    assert parts({chat("a"): Use(1.0, 1)}, HERE) == {}


def test_a_pinned_model_has_its_part_first() -> None:
    found = parts({chat("a"): Use(9.0, 1), chat("b", pinned=True): Use(1.0, 1)}, HERE)
    assert {name: part.slots for name, part in found.items()} == {"a": 1, "b": 3}


def test_nobody_gets_fewer_slots_than_were_in_use_at_once() -> None:
    found = parts({chat("a"): Use(9.0, 3), chat("b"): Use(1.0, 1)}, HERE)
    assert {name: part.slots for name, part in found.items()} == {"a": 3, "b": 1}
    assert parts({chat("a"): Use(9.0, 4), chat("b"): Use(1.0, 1)}, HERE) == {}
