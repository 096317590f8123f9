"""Who goes so that a model fits: the cheapest, and nobody without need."""

from __future__ import annotations

from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from appliance.scheduler.eviction import Candidate, Placing, choose_victims
from appliance.scheduler.placing import BestFit
from appliance.scheduler.values import ModelSpec


def _places(demand: int) -> Placing:
    return partial(BestFit().place, ModelSpec("m", demand=demand))


def test_a_small_want_does_not_cost_a_large_model_that_is_cheap_per_byte() -> None:
    small = Candidate("small", {"gpu0": 1}, 0.1)
    large = Candidate("large", {"gpu0": 13}, 0.2)
    medium = Candidate("medium", {"gpu0": 6}, 0.3)
    found = choose_victims({"gpu0": 0}, [small, large, medium], _places(5))
    assert found is not None
    assert found[1] == [medium]


def test_what_goes_anyway_is_waited_for_before_anybody_else_is_sent() -> None:
    going = Candidate("going", {"gpu0": 8}, -1.0)
    small = Candidate("small", {"gpu1": 5}, 0.1)
    free = {"gpu0": 0, "gpu1": 0}
    found = choose_victims(free, [small, going], _places(5))
    assert found is not None
    assert found[1] == [going]


_CANDIDATES = st.lists(
    st.tuples(st.sampled_from(["gpu0", "gpu1"]), st.integers(1, 20), st.floats(0.01, 1.0)),
    min_size=1,
    max_size=8,
)


@given(_CANDIDATES, st.integers(1, 40), st.integers(0, 10), st.integers(0, 10))
def test_every_victim_is_needed_and_no_single_one_that_is_clearly_cheaper_would_do(
    drawn: list[tuple[str, int, float]], demand: int, free0: int, free1: int
) -> None:
    candidates = [
        Candidate(f"c{n}", {card: size}, density) for n, (card, size, density) in enumerate(drawn)
    ]
    free = {"gpu0": free0, "gpu1": free1}

    def makes_room(some: list[Candidate]) -> bool:
        freed = dict(free)
        for candidate in some:
            for card, size in candidate.bytes_by_device.items():
                freed[card] += size
        return max(freed.values()) >= demand

    found = choose_victims(free, candidates, _places(demand))
    assert (found is not None) == makes_room(candidates)
    if found is None or makes_room([]):
        return
    _, victims = found
    assert makes_room(victims)
    for victim in victims:
        assert not makes_room([other for other in victims if other is not victim])
    alone = [candidate for candidate in candidates if makes_room([candidate])]
    if alone:
        cheapest = min(candidate.loss for candidate in alone)
        assert 0.75 * sum(victim.loss for victim in victims) <= cheapest * 1.001
