"""Filling cards from a table gives what asking for the bytes of each split gives, and reach what
placing gives."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.gpu.calibration import Calibration, load_key
from appliance.gpu.filling import Configuration
from appliance.gpu.fit import Fit, fit_exactly, fit_on_cards, fit_partly
from appliance.gpu.footprint import ShapeFootprint
from appliance.gpu.placement import search_any
from appliance.gpu.reach import Reach
from appliance.gpu.shape import read_shape
from appliance.gpu.space import Space
from appliance.gpu.types import GIB, HOST, MIB, KvType, Layout, ModelShape
from appliance.gpu.wants import PlacementPolicy, Want
from tests.gpu.sketches.catalogue import SKETCHES
from tests.gpu.sparse import write

MODELS = ("llama-3.1-8b", "llama-3.2-3b", "gemma-3-4b", "jamba-3b", "deepseek-v2-lite")
"""Of uniform layers, with a tied head, windowed, hybrid, and with experts."""
POLICY = PlacementPolicy(reserve_bytes=0, host_reserve_bytes=0)


@dataclass(frozen=True)
class Untabled:
    """The same model without its table: the bytes of every split are asked for."""

    footprint: ShapeFootprint

    @property
    def n_layers(self) -> int:
        return self.footprint.n_layers

    def bytes_by_device(self, layout: Layout) -> tuple[int, ...]:
        return self.footprint.bytes_by_device(layout)

    def most_layers(self, layout: Layout, room_bytes: int) -> int:
        return self.footprint.most_layers(layout, room_bytes)

    def layer_table(self, layout: Layout) -> None:
        return None


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> list[ModelShape]:
    folder = tmp_path_factory.mktemp("shapes")
    return [read_shape(write(SKETCHES[name](), folder)) for name in MODELS]


which = st.integers(0, len(MODELS) - 1)
rooms = st.lists(
    st.one_of(st.sampled_from([0, GIB, 2 * GIB, 3 * GIB]), st.integers(0, 12 * GIB)),
    min_size=1,
    max_size=8,
)
configurations = st.builds(
    Configuration,
    st.sampled_from([512, 4096, 20000]),
    st.integers(1, 4),
    st.sampled_from([KvType.F16, KvType.Q8_0]),
)


@given(which, rooms, configurations, st.booleans(), st.booleans(), st.integers(1, 8))
@settings(max_examples=400, deadline=None)
def test_a_table_fills_cards_as_asking_for_each_split_does(
    shapes: list[ModelShape],
    which: int,
    sizes: list[int],
    chosen: Configuration,
    is_promise: bool,
    is_packing: bool,
    most_cards: int,
) -> None:
    tabled = ShapeFootprint(shapes[which], is_promise=is_promise)
    room = {f"GPU-{n}": size for n, size in enumerate(sizes)} | {HOST: 64 * GIB}
    cards = list(room)[:-1]
    some = tabled.n_layers // 2

    def fits(footprint: ShapeFootprint | Untabled) -> list[Fit | None]:
        return [
            fit_on_cards(
                footprint, chosen, room, cards, most_cards=most_cards, is_packing=is_packing
            ),
            fit_partly(footprint, chosen, room, cards, most_cards=most_cards),
            fit_exactly(footprint, chosen, room, cards, some, most_cards=most_cards),
        ]

    assert fits(tabled) == fits(Untabled(tabled))


@given(which, rooms, configurations, st.integers(0, 600), st.booleans(), st.booleans())
@settings(max_examples=400, deadline=None)
def test_what_is_within_reach_is_what_can_be_placed(
    shapes: list[ModelShape],
    which: int,
    sizes: list[int],
    chosen: Configuration,
    host_mib: int,
    can_split: bool,
    can_shrink: bool,
) -> None:
    footprint = ShapeFootprint(shapes[which], is_promise=True)
    want = Want(
        "m", footprint, chosen.context_window, chosen.slots, kv_types=(chosen.kv_type,),
        min_slots=1 if can_shrink else chosen.slots, allow_split=can_split, allow_partial=False,
        allow_host=False,
    )  # fmt: skip
    room = {f"GPU-{n}": size for n, size in enumerate(sizes)} | {HOST: host_mib * 4 * MIB}
    placement = search_any(want, Space(room, tuple(room)[:-1]), POLICY)
    reach = Reach(want)
    assert reach.fits(room) in (placement is not None, None)
    assert reach.may_fit(room) or placement is None
    if host_mib * 4 * MIB > 2 * GIB:
        assert reach.fits(room) is not None, "a plentiful host leaves no doubt"


def test_what_may_be_on_the_host_or_on_some_cards_only_is_searched_for(
    shapes: list[ModelShape],
) -> None:
    footprint = ShapeFootprint(shapes[0])
    room = {"GPU-0": GIB, HOST: 64 * GIB}
    for want in (
        Want("m", footprint, 4096),
        Want("m", footprint, 4096, allow_partial=False, allow_host=False, pin=("GPU-0",)),
        Want("m", footprint, 4096, allow_partial=False, allow_host=False, exclusive=True),
        Want("m", footprint, 4096, gpu_layers=4),
    ):
        assert Reach(want).fits(room) is None
        assert Reach(want).may_fit(room)
    assert Reach(Want("m", footprint, 4096, least_on_cards=1.0)).fits(room) is False


@given(rooms, st.integers(0, 4096), st.integers(0, 7))
@settings(max_examples=200, deadline=None)
def test_a_split_that_was_seen_to_need_more_is_promised_no_card_too_small(
    shapes: list[ModelShape], sizes: list[int], more_mib: int, card: int
) -> None:
    chosen = Configuration(4096, 2, KvType.F16)
    room = {f"GPU-{n}": size for n, size in enumerate(sizes)} | {HOST: 64 * GIB}
    cards = list(room)[:-1]
    first = fit_on_cards(
        ShapeFootprint(shapes[0], is_promise=True), chosen, room, cards, most_cards=len(cards)
    )
    if first is None:
        return
    counts = tuple(map(float, first.counts))
    layout = Layout(4096, 2, KvType.F16, first.gpu_layers, counts)
    key = load_key(shapes[0], ShapeFootprint(shapes[0]).params(layout, ()))
    at = card % len(first.cards)
    seen = {(key, at): first.shares[at].vram_bytes + more_mib * MIB}
    measured = ShapeFootprint(shapes[0], Calibration(measured=seen), is_promise=True)
    want = Want("m", measured, 4096, 2, min_slots=2, allow_partial=False, allow_host=False)
    placement = search_any(want, Space(room, tuple(cards)), POLICY)
    if placement is not None:
        assert all(size <= room[uuid] for uuid, size in placement.by_device.items())
    assert Reach(want).fits(room) in (placement is not None, None)
