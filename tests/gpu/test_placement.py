"""Placement: never over budget, deterministic, and a refusal only when nothing fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.gpu.filling import Configuration
from appliance.gpu.fit import fit_on_cards
from appliance.gpu.joint import place_together
from appliance.gpu.space import space_in
from appliance.gpu.types import (
    GIB,
    HOST,
    MIB,
    Device,
    FixedFootprint,
    Health,
    Inventory,
    KvType,
    Layout,
    ProcessUse,
)
from appliance.gpu.wants import NoFit, Placement, PlacementPolicy, Want
from tests.gpu.placing import place

TIGHT = PlacementPolicy(reserve_bytes=0, host_reserve_bytes=0)


@dataclass(frozen=True)
class Layered:
    """A model of equal layers in small numbers, so that every choice can be enumerated."""

    n_layers: int
    layer: int
    per_token: int
    overhead: int

    def bytes_by_device(self, layout: Layout) -> tuple[int, ...]:
        kv = layout.context_window * layout.slots * self.per_token
        if layout.kv_type is KvType.Q8_0:
            kv //= 2
        cards = []
        for share in layout.shares:
            count = int(share)
            cards.append(count * (self.layer + kv) + (self.overhead if count else 0))
        return (*cards, (self.n_layers - layout.gpu_layers) * (self.layer + kv))

    def most_layers(self, layout: Layout, room_bytes: int) -> int:
        kv = layout.context_window * layout.slots * self.per_token
        if layout.kv_type is KvType.Q8_0:
            kv //= 2
        return max(room_bytes - self.overhead, 0) // (self.layer + kv)

    def layer_table(self, layout: Layout) -> None:
        return None


def machine(*cards: int, host: int = 0) -> Inventory:
    devices = tuple(Device(f"GPU-{n}", n, "card", total, 0, total) for n, total in enumerate(cards))
    return Inventory((*devices, Device(HOST, -1, "ram", host, 0, host)), 0.0)


def want(footprint: object, **options: object) -> Want:
    defaults: dict[str, object] = {
        "context_window": 1024,
        "allow_partial": False,
        "allow_host": False,
    }
    return Want("m", footprint, **(defaults | options))  # type: ignore[arg-type]


footprints = st.builds(
    Layered,
    n_layers=st.integers(1, 5),
    layer=st.integers(1, 40),
    per_token=st.integers(0, 1),
    overhead=st.integers(0, 20),
)
wants = st.builds(
    lambda footprint, slots, kv, window, low, split, partial, host, exactly, least: Want(
        "m",
        footprint,
        context_window=window,
        min_context_window=min(low, window),
        slots=slots,
        kv_types=kv,
        allow_split=split,
        allow_partial=partial,
        allow_host=host,
        gpu_layers=exactly,
        least_on_cards=least,
    ),
    footprints,
    st.integers(1, 3),
    st.sampled_from([(KvType.F16,), (KvType.F16, KvType.Q8_0)]),
    st.integers(2, 24),
    st.integers(1, 24),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.none() | st.integers(1, 5),
    st.sampled_from([0.0, 0.4, 1.0]),
)
cards = st.lists(st.integers(0, 150), min_size=0, max_size=3)


def feasible(of: Want, inventory: Inventory) -> bool:
    """By trying everything: cards in every order, every composition of layers, all shrinks."""
    room = space_in(inventory, {}, TIGHT).room
    gpus = [device.uuid for device in inventory.gpus]
    layers = of.footprint.n_layers
    most = len(gpus) if of.allow_split else min(1, len(gpus))
    for kv_type in of.kv_types:
        for on_cards in range(layers + 1):
            if gpus and of.gpu_layers is not None and on_cards != min(of.gpu_layers, layers):
                continue
            if gpus and of.gpu_layers is None and on_cards < of.least_on_cards * layers:
                continue
            if 0 < on_cards < layers and not (of.allow_partial or of.gpu_layers):
                continue
            if on_cards == 0 and gpus and not of.allow_host:
                continue
            for used in range(0 if on_cards == 0 else 1, most + 1):
                if (on_cards == 0) != (used == 0):
                    continue
                for chosen in permutations(gpus, used):
                    for counts in product(range(1, on_cards + 1), repeat=used):
                        if sum(counts) != on_cards:
                            continue
                        layout = Layout(
                            of.least_window,
                            of.min_slots,
                            kv_type,
                            on_cards,
                            tuple(map(float, counts)),
                        )
                        sizes = of.footprint.bytes_by_device(layout)
                        homes = (*chosen, HOST)
                        if all(size <= room[u] for u, size in zip(homes, sizes, strict=True)):
                            return True
    return False


@given(of=wants, totals=cards, host=st.integers(0, 200))
@settings(max_examples=400, deadline=None)
def test_a_refusal_comes_only_when_nothing_is_feasible_and_nothing_goes_over(
    of: Want, totals: list[int], host: int
) -> None:
    inventory = machine(*totals, host=host)
    decision = place(of, inventory, {}, policy=TIGHT)
    assert decision == place(of, inventory, {}, policy=TIGHT)
    if isinstance(decision, NoFit):
        assert not feasible(of, inventory)
        assert decision.needed_bytes > 0 or not inventory.gpus
        return
    assert isinstance(decision, Placement)
    room = space_in(inventory, {}, TIGHT).room
    for uuid, size in decision.by_device.items():
        assert size <= room[uuid]
    layout = Layout(
        decision.context_window,
        decision.slots,
        decision.kv_type,
        decision.gpu_layers,
        decision.tensor_split,
    )
    sizes = of.footprint.bytes_by_device(layout)
    promised = [decision.by_device[uuid] for uuid in decision.cards]
    assert list(sizes[:-1]) == promised
    assert sizes[-1] == decision.by_device.get(HOST, 0)
    assert of.least_window <= decision.context_window <= of.context_window
    assert of.min_slots <= decision.slots <= of.slots
    assert decision.kv_type in of.kv_types


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    totals=st.lists(st.integers(1, 100), min_size=1, max_size=3),
)
@settings(max_examples=200, deadline=None)
def test_together_all_that_can_be_packed_is_packed_and_no_card_goes_over(
    sizes: list[int], totals: list[int]
) -> None:
    inventory = machine(*totals)
    all_wanted = [
        Want(
            f"m{n}",
            FixedFootprint(size),
            1024,
            allow_split=False,
            allow_partial=False,
            allow_host=False,
        )
        for n, size in enumerate(sizes)
    ]
    space = space_in(inventory, {}, TIGHT)
    placed = place_together(all_wanted, space, TIGHT)
    assert placed == place_together(all_wanted, space, TIGHT)
    assert all(size >= 0 for size in space.without(placed.values()).room.values())
    packable = any(
        all(
            sum(size for size, at in zip(sizes, homes, strict=True) if at == card) <= totals[card]
            for card in range(len(totals))
        )
        for homes in product(range(len(totals)), repeat=len(sizes))
    )
    assert (len(placed) == len(all_wanted)) == packable


def test_the_tightest_single_card_that_holds_it_is_taken() -> None:
    placed = place(want(FixedFootprint(5 * GIB)), machine(24 * GIB, 8 * GIB, 6 * GIB), {})
    assert isinstance(placed, Placement)
    assert placed.cards == ("GPU-2",)


def test_shrinking_goes_slots_then_kv_type_then_window_and_says_so() -> None:
    model = Layered(n_layers=1, layer=100, per_token=1, overhead=0)
    allowed = want(
        model,
        context_window=1000,
        min_context_window=256,
        slots=4,
        kv_types=(KvType.F16, KvType.Q8_0),
    )

    def placed(room: int) -> Placement:
        found = place(allowed, machine(room), {}, policy=TIGHT)
        assert isinstance(found, Placement)
        return found

    assert placed(4100).reasons == ()
    assert placed(3100).reasons == ("slots 4 to 3",)
    assert placed(1100).reasons == ("slots 4 to 1",)
    smaller = placed(700)
    assert (smaller.kv_type, smaller.slots, smaller.context_window) == (KvType.Q8_0, 1, 1000)
    shortest = placed(400)
    assert (shortest.kv_type, shortest.slots, shortest.context_window) == (KvType.Q8_0, 1, 512)
    assert shortest.reasons == ("slots 4 to 1", "KV type f16 to q8_0", "context window 1000 to 512")


def test_some_layers_go_to_the_host_only_where_that_is_allowed() -> None:
    model = Layered(n_layers=4, layer=100, per_token=0, overhead=0)
    refused = place(want(model), machine(250, host=1000), {}, policy=TIGHT)
    assert isinstance(refused, NoFit)
    assert any("host" in choice.text for choice in refused.choices)
    placed = place(want(model, allow_partial=True), machine(250, host=1000), {}, policy=TIGHT)
    assert isinstance(placed, Placement)
    assert placed.gpu_layers == 2
    assert placed.by_device == {"GPU-0": 200, HOST: 200}


def test_pins_exclusive_cards_and_sick_cards_are_respected() -> None:
    model = FixedFootprint(GIB)
    two = machine(8 * GIB, 8 * GIB)
    pinned = place(want(model, pin=("GPU-1",)), two, {"GPU-1": 3 * GIB})
    assert isinstance(pinned, Placement)
    assert pinned.cards == ("GPU-1",)
    alone = place(want(model, exclusive=True), two, {"GPU-0": MIB})
    assert isinstance(alone, Placement)
    assert alone.cards == ("GPU-1",)
    shut = place(want(model), two, {}, closed=frozenset({"GPU-0"}))
    assert isinstance(shut, Placement)
    assert shut.cards == ("GPU-1",)
    sick = Inventory(
        (
            Device("GPU-0", 0, "card", 8 * GIB, 0, 8 * GIB, health=Health.LOST),
            Device(HOST, -1, "ram", 0, 0, 0),
        ),
        0.0,
    )
    assert isinstance(place(want(model), sick, {}), NoFit)
    gone = place(want(model, pin=("GPU-9",)), two, {})
    assert isinstance(gone, NoFit)
    assert "GPU-9" in gone.reason


def test_foreign_memory_and_the_reserve_are_not_promised() -> None:
    busy = Device(
        "GPU-0",
        0,
        "card",
        10 * GIB,
        6 * GIB,
        4 * GIB,
        processes=(ProcessUse(1, 5 * GIB, False), ProcessUse(2, GIB, True)),
    )
    inventory = Inventory((busy, Device(HOST, -1, "ram", 0, 0, 0)), 0.0)
    policy = PlacementPolicy(reserve_bytes=GIB, host_reserve_bytes=0)
    assert space_in(inventory, {"GPU-0": 2 * GIB}, policy).room["GPU-0"] == 2 * GIB
    assert isinstance(
        place(want(FixedFootprint(3 * GIB)), inventory, {"GPU-0": 2 * GIB}, policy=policy), NoFit
    )


def test_so_many_layers_as_configured_go_on_cards_no_more_and_no_fewer() -> None:
    model = Layered(n_layers=4, layer=100, per_token=0, overhead=0)
    for layers, on_card in ((1, 100), (3, 300), (9, 400)):
        placed = place(want(model, gpu_layers=layers), machine(1000, host=1000), {}, policy=TIGHT)
        assert isinstance(placed, Placement)
        assert placed.by_device.get("GPU-0") == on_card
        assert placed.gpu_layers == min(layers, 4)
    refused = place(want(model, gpu_layers=3), machine(250, host=1000), {}, policy=TIGHT)
    assert isinstance(refused, NoFit)
    assert refused.needed_bytes == 300
    assert any("auto" in choice.text for choice in refused.choices)


def test_a_place_with_too_few_layers_on_cards_is_none() -> None:
    model = Layered(n_layers=4, layer=100, per_token=0, overhead=0)
    half = want(model, allow_partial=True, allow_host=True, least_on_cards=0.5)
    placed = place(half, machine(200, host=1000), {}, policy=TIGHT)
    assert isinstance(placed, Placement)
    assert placed.gpu_layers == 2
    assert isinstance(place(half, machine(199, host=1000), {}, policy=TIGHT), NoFit)
    without_card = place(half, machine(host=1000), {}, policy=TIGHT)
    assert isinstance(without_card, Placement), "where there is no card there is no less"


def test_a_refusal_has_numbers_and_near_choices() -> None:
    model = Layered(n_layers=1, layer=1000, per_token=1, overhead=0)
    refused = place(want(model, context_window=4096, slots=2, min_slots=2), machine(3000), {},
                    policy=TIGHT)  # fmt: skip
    assert isinstance(refused, NoFit)
    assert refused.needed_bytes == 1000 + 2 * 4096
    assert refused.available_bytes["GPU-0"] == 3000
    windows = [choice.context_window for choice in refused.choices if choice.context_window]
    assert windows == [1792]
    assert any(choice.free_bytes == 9192 - 3000 for choice in refused.choices)


def test_without_a_card_models_go_to_the_host() -> None:
    placed = place(want(FixedFootprint(GIB)), machine(host=8 * GIB), {})
    assert isinstance(placed, Placement)
    assert placed.gpu_layers == 0
    assert placed.by_device == {HOST: GIB}


def test_the_more_urgent_model_gets_the_card_when_both_cannot_have_one() -> None:
    space = space_in(machine(8 * GIB), {}, TIGHT)
    slow = Want("slow", FixedFootprint(6 * GIB), 1024, priority=2, allow_host=False, worth=9.0)
    fast = Want("fast", FixedFootprint(6 * GIB), 1024, priority=0, allow_host=False)
    assert list(place_together([slow, fast], space)) == ["fast"]


def test_of_equally_urgent_models_those_worth_most_get_the_card() -> None:
    space = space_in(machine(10 * GIB), {}, TIGHT)
    large = Want("large", FixedFootprint(8 * GIB), 1024, allow_host=False, worth=3.0)
    small = [
        Want(f"small{n}", FixedFootprint(4 * GIB), 1024, allow_host=False, worth=2.0)
        for n in (1, 2)
    ]
    assert list(place_together([large, *small], space)) == ["small1", "small2"]
    assert list(place_together([replace(large, worth=5.0), *small], space)) == ["large"]


def test_slots_are_shared_out_evenly_among_equally_urgent_models() -> None:
    model = Layered(n_layers=1, layer=100, per_token=1, overhead=0)
    wants = [replace(want(model, context_window=100, slots=8), model=name) for name in "abc"]
    space = space_in(machine(300 + 1400), {}, TIGHT)
    slots = [placed.slots for placed in place_together(wants, space, TIGHT).values()]
    assert slots == [6, 4, 4], "1400 tokens: four each, and what is left for the first"


@pytest.mark.parametrize("gpus", [1, 4, 8])
def test_placing_on_eight_cards_is_quick(gpus: int) -> None:
    inventory = machine(*(24 * GIB for _ in range(gpus)))
    placed = place(want(FixedFootprint(20 * GIB * gpus, 0, 80)), inventory, {})
    assert isinstance(placed, Placement)
    assert len(placed.cards) == gpus


@given(
    st.builds(Layered, st.integers(1, 5), st.integers(1, 12), st.integers(0, 2), st.integers(0, 6)),
    st.lists(st.integers(0, 40), min_size=1, max_size=5),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_the_run_of_cards_is_the_one_found_by_trying_each(
    model: Layered, rooms: list[int], is_packing: bool
) -> None:
    room = {f"GPU-{n}": size for n, size in enumerate(rooms)}
    chosen = Configuration(1, 1, KvType.F16)
    found = fit_on_cards(
        model, chosen, room, list(room), most_cards=len(room), is_packing=is_packing
    )
    by_room = sorted(room, key=lambda uuid: (room[uuid], uuid))
    in_turn = list if is_packing else reversed
    each = [
        fit
        for count in range(1, len(room) + 1)
        for run in in_turn([by_room[n : n + count] for n in range(len(room) - count + 1)])
        if (fit := fit_on_cards(model, chosen, room, run, most_cards=count)) is not None
    ]
    assert (found is None) == (not each)
    if found is not None:
        assert [room[card] for card in found.cards] == [room[card] for card in each[0].cards]
        assert found.counts == each[0].counts
