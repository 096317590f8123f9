"""Nothing runs out of memory on a hostile machine; the long version is scripts/bench/oom.py."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.scheduler.placing import BestFit
from appliance.scheduler.values import Fit, ModelSpec
from tests.scheduler.machine import CARDS, GIB, Loading
from tests.scheduler.margin import WithMargin
from tests.scheduler.optimum import Course, Held, most_byte_s
from tests.scheduler.ordeal import Survived, endure
from tests.scheduler.packing import Packing
from tests.scheduler.watch import SOON_S, Signs, Watch


@pytest.mark.parametrize("seed", range(4))
def test_no_load_runs_out_of_memory_and_no_promise_exceeds_a_card(seed: int) -> None:
    run = endure(seed, 1_000)
    assert (run.oom, run.over_physical, run.over_reserved) == (0, 0, 0)
    assert run.loads > 50, "it loaded"
    assert run.served > 100, "it served"
    assert run.deaths > 10, "workers died"
    assert_gets_somewhere(run)


def test_a_load_that_took_more_than_the_last_one_is_not_charged_more_than_its_card_has() -> None:
    assert endure(110, 60).over_reserved == 0


@pytest.mark.parametrize("seed", range(2))
def test_a_core_that_knows_all_gets_somewhere_too(seed: int) -> None:
    run = endure(seed, 1_000, knows_all=True)
    assert (run.oom, run.over_physical, run.over_reserved) == (0, 0, 0)
    assert_gets_somewhere(run)


def assert_gets_somewhere(run: Survived) -> None:
    """What is loaded is used, and who waits is not left beside free memory; bounds are twice what
    was seen over 200 long runs."""
    assert run.most_starts <= 10
    assert run.barren < run.loads / 3
    assert run.starved_s <= 60


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
    assert_gets_somewhere(run)


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


def test_the_most_at_one_instant_is_the_best_of_all_assignments() -> None:
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


def test_an_optimum_over_time_gives_a_second_for_each_change_of_place() -> None:
    """Two models that are needed in turn share one card: 20 seconds, less one for the swap."""
    sizes = {"a": ("1", 8 * GIB), "b": ("1", 8 * GIB)}
    work = [Held("a", "1", 0, 8 * GIB, 0.0, 5.0), Held("b", "1", 0, 8 * GIB, 8.0, 12.0)]
    course = Course([(0.0, (10 * GIB, 0))], [(0.0, sizes)], [], work, 20.0)
    assert most_byte_s(course) == 19 * 8 * GIB


def test_an_optimum_over_time_makes_way_for_another_program_beforehand_and_is_back_at_once() -> (
    None
):
    rooms = [(0.0, (10 * GIB, 0)), (6.0, (2 * GIB, 0)), (9.0, (10 * GIB, 0))]
    course = Course(list(rooms), [(0.0, {"a": ("1", 8 * GIB)})], [], [], 20.0)
    assert most_byte_s(course) == (20 - 1 - 3) * 8 * GIB


def test_an_optimum_over_time_loses_who_dies_and_loads_what_changed_anew() -> None:
    before, after = {"a": ("1", 8 * GIB)}, {"a": ("2", 4 * GIB)}
    course = Course([(0.0, (10 * GIB, 0))], [(0.0, before), (10.5, after)], [(5.5, "a")], [], 20.0)
    assert most_byte_s(course) == 9 * 8 * GIB + 9 * 4 * GIB


def test_an_optimum_over_time_does_not_move_who_works() -> None:
    """At each instant a could be on the other card and b in its place; but a works on."""
    sizes = {"a": ("1", 4 * GIB), "b": ("1", 9 * GIB)}
    rooms = [(0.0, (10 * GIB, 4 * GIB)), (10.0, (4 * GIB, 10 * GIB))]
    work = [Held("a", "1", 1, 4 * GIB, 0.0, 20.0)]
    course = Course(rooms, [(0.0, sizes)], [], work, 20.0)
    assert most_byte_s(course) == 20 * 4 * GIB + 10 * 9 * GIB
    assert most_byte_s(course) < 20 * Packing({"a": 4 * GIB, "b": 9 * GIB}).most(
        frozenset({"a"}), rooms[0][1]
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_run_holds_less_than_the_optimum_over_time_and_that_less_than_its_instants(
    seed: int,
) -> None:
    run = endure(seed, 500)
    assert run.resident_byte_s < most_byte_s(run.course) < run.instants_byte_s


def test_the_watch_counts_starts_in_a_row_and_what_nobody_used() -> None:
    signs = Signs()
    watch = Watch(signs)
    for n in range(3):
        watch.started("a", f"a#{n}", n * SOON_S / 4)
        watch.stopped(f"a#{n}")
    watch.started("a", "a#3", 10 * SOON_S)
    watch.served("a#3", 1.5)
    watch.stopped("a#3")
    assert (signs.most_starts, signs.barren, signs.served, signs.waited_s) == (3, 3, 1, 1.5)


def test_the_watch_sees_who_waits_beside_free_memory() -> None:
    signs = Signs()
    watch = Watch(signs)
    for at_s, models in ((0, {"a"}), (3, {"a", "b"}), (4, {"b"}), (5, {"a", "b"}), (6, {"a"})):
        watch.starving(models, at_s)
    assert signs.starved_s == 3
