"""Nothing runs out of memory on a hostile machine; the long version is scripts/bench/oom.py."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.scheduler.placing import BestFit, WithMargin
from appliance.scheduler.values import Fit, ModelSpec
from tests.scheduler.ordeal import CARDS, GIB, Loading, endure
from tests.scheduler.packing import Packing


@pytest.mark.parametrize("seed", range(4))
def test_no_load_runs_out_of_memory_and_no_promise_exceeds_a_card(seed: int) -> None:
    run = endure(seed, 1_000)
    assert (run.oom, run.over_physical, run.over_reserved) == (0, 0, 0)
    assert run.loads > 50, "it loaded"
    assert run.served > 100, "it served"
    assert run.deaths > 10, "workers died"


@pytest.mark.parametrize("seed", range(2))
def test_a_load_that_looks_and_waits_is_ready_or_declined(seed: int) -> None:
    run = endure(seed, 1_000, Loading.CHECKED)
    assert (run.oom, run.over_physical, run.over_reserved) == (0, 0, 0)
    assert run.loads > 50
    assert run.declined < run.loads / 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_no_load_runs_out_of_memory_in_ten_thousand_operations(seed: int) -> None:
    run = endure(seed, 10_000)
    assert (run.oom, run.over_physical, run.over_reserved) == (0, 0, 0)


def test_the_same_seed_gives_the_same_run() -> None:
    assert endure(5, 300) == endure(5, 300)


def test_without_a_claim_another_program_can_come_in_the_middle_of_a_load() -> None:
    assert any(endure(seed, 1_000, Loading.UNCHECKED).oom for seed in range(4))


@given(st.integers(1, 1 << 40), st.integers(1, 1 << 40), st.floats(0, 0.5))
def test_what_fits_with_its_margin_is_promised_whole_and_never_a_byte_too_much(
    demand: int, free: int, margin: float
) -> None:
    fit = WithMargin(BestFit(), margin).place(ModelSpec("m", demand=demand), {"gpu0": free})
    if isinstance(fit, Fit):
        assert demand <= fit.total_bytes <= free
        assert fit.total_bytes * 1000 >= demand * (1000 + round(margin * 1000))


def test_the_optimum_is_the_best_of_all_assignments() -> None:
    sizes = {"a": 9 * GIB, "b": 7 * GIB, "c": 6 * GIB, "d": 11 * GIB}
    rooms = [14 * GIB, 10 * GIB]
    best = 0
    for homes in product(range(3), repeat=len(sizes)):
        on = [
            sum(s for s, home in zip(sizes.values(), homes, strict=True) if home == card)
            for card in (1, 2)
        ]
        if all(used <= room for used, room in zip(on, rooms, strict=True)):
            best = max(best, sum(on))
    assert len(CARDS) == 2
    assert Packing(sizes).most(frozenset(), rooms) == best
    assert Packing(sizes).most(frozenset({"d", "b"}), rooms) == 18 * GIB
