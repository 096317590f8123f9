"""Decisions in sentences, with the numbers that decided them."""

from __future__ import annotations

import pytest

from appliance.scheduler.telling import tell


def test_an_eviction_says_who_for_and_what_was_weighed() -> None:
    numbers = {
        "instance": "a#1", "for_model": "b", "forecast": "agents", "next_use_s": 300.0,
        "reload_s": 6.5, "density": 0.1, "leases": 1, "waited_s": 2.1, "overtaken": 0,
    }  # fmt: skip
    assert tell("evict", "a", numbers) == (
        "a makes way for b once its 1 running step ended: it is expected again in 5 min (going by "
        "agents) and takes 6.5 s to load, the least loss for its bytes; b has been waited for "
        "2.1 s."
    )
    assert "not expected again" in tell("evict", "a", numbers | {"next_use_s": 1e9})


@pytest.mark.parametrize("kind", ["evict", "a kind of another version"])
def test_a_record_with_other_numbers_is_told_all_the_same(kind: str) -> None:
    assert tell(kind, "a", {"why": "x"}).startswith("a: ")
