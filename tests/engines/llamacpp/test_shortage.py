"""A load that finds its memory gone declines; a file that is bad is bad."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.engines.llamacpp.engine import LlamaCppEngine
from appliance.engines.llamacpp.params import LlamaCppParams
from appliance.engines.llamacpp.shortage import (
    CONTEXT_BYTES,
    LOOK_EVERY_S,
    PATIENCE_S,
    Look,
    weights_read,
)
from appliance.errors import ModelBroken, NoCapacity

GIB = 1 << 30
LOADED = (
    "load_tensors:        CUDA0 model buffer size =  4096.00 MiB\n"
    "load_tensors:        CUDA1 model buffer size =  2048.00 MiB\n"
    "load_tensors:   CPU_Mapped model buffer size =    92.10 MiB"
)


class Cards:
    """Cards whose free bytes change with every look; time passes by sleeping alone."""

    def __init__(self, *looks: tuple[int, ...]) -> None:
        self._looks: Iterator[tuple[int, ...]] = iter(looks)
        self._last: tuple[int, ...] = ()
        self.now_s = 0.0

    def free(self) -> dict[str, int]:
        self._last = next(self._looks, self._last)
        return {f"CUDA{n}": size for n, size in enumerate(self._last)}

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def look(self, *promised: int) -> Look:
        return Look(promised, self.free, now_s=lambda: self.now_s, sleep=self.sleep)


def test_bytes_that_are_there_are_not_waited_for() -> None:
    cards = Cards((8 * GIB, 8 * GIB))
    cards.look(8 * GIB + CONTEXT_BYTES, 4 * GIB).before_weights()
    assert cards.now_s == 0


def test_bytes_of_those_who_are_still_going_are_waited_for() -> None:
    cards = Cards((GIB,), (GIB,), (8 * GIB,))
    cards.look(8 * GIB).before_weights()
    assert cards.now_s == pytest.approx(2 * LOOK_EVERY_S)


def test_what_does_not_come_is_declined_with_its_numbers() -> None:
    cards = Cards((9 * GIB, GIB))
    with pytest.raises(NoCapacity, match="CUDA1 has 1024 MiB free of 3584 MiB"):
        cards.look(8 * GIB, 4 * GIB).before_weights()
    assert cards.now_s == pytest.approx(PATIENCE_S, abs=2 * LOOK_EVERY_S)


def test_between_weights_and_cache_only_what_is_left_must_be_free() -> None:
    assert weights_read(LOADED) == {"CUDA0": 4 * GIB, "CUDA1": 2 * GIB, "CPU_Mapped": 96573849}
    promised = (6 * GIB + CONTEXT_BYTES, 3 * GIB + CONTEXT_BYTES)
    cards = Cards((2 * GIB, GIB))
    assert cards.look(*promised).allocate(lambda: "made", LOADED) == "made"
    assert cards.now_s == 0
    cards = Cards((2 * GIB, GIB - 1), (2 * GIB, GIB))
    assert cards.look(*promised).allocate(lambda: "made", LOADED) == "made"
    assert cards.now_s == pytest.approx(LOOK_EVERY_S)
    cards = Cards((2 * GIB, GIB - 1))
    with pytest.raises(NoCapacity, match="CUDA1"):
        cards.look(*promised).allocate(lambda: pytest.fail("not free"), LOADED)
    assert cards.now_s == pytest.approx(PATIENCE_S, abs=2 * LOOK_EVERY_S)


def test_what_is_refused_after_the_weights_is_tried_again_when_it_is_free() -> None:
    """Another program came after the look, and left."""
    cards, answers = Cards((2 * GIB,), (GIB,), (GIB,), (GIB,), (2 * GIB,)), iter((None, "made"))
    look = cards.look(6 * GIB + CONTEXT_BYTES)
    assert look.allocate(lambda: next(answers), LOADED) == "made"
    assert cards.now_s == pytest.approx(3 * LOOK_EVERY_S)


def test_what_is_refused_again_and_again_is_declined() -> None:
    cards = Cards((2 * GIB,))
    with pytest.raises(NoCapacity, match="refused"):
        cards.look(6 * GIB + CONTEXT_BYTES).allocate(lambda: None, LOADED)
    assert cards.now_s == pytest.approx(PATIENCE_S, abs=2 * LOOK_EVERY_S)


def test_a_load_on_the_host_alone_asks_no_card() -> None:
    Cards().look().before_weights()
    assert Cards().look().allocate(lambda: "made", LOADED) == "made"


@pytest.mark.parametrize(("promised", "expected"), [((GIB,), NoCapacity), ((), ModelBroken)])
async def test_an_allocation_that_the_library_refuses_is_a_shortage_where_a_card_was_promised(
    tmp_path: Path, params: LlamaCppParams, promised: tuple[int, ...], expected: type[Exception]
) -> None:
    """A worker that may have 4 GiB of addresses, asked for a cache of 6."""
    narrow = tmp_path / "python"
    narrow.write_text(f'#!/bin/sh\nulimit -v {4 << 20}\nexec {sys.executable} "$@"\n')
    narrow.chmod(0o755)
    asked = replace(
        params, python=str(narrow), context_window=1 << 18, slots=1, promised_bytes=promised
    )
    with pytest.raises((NoCapacity, ModelBroken), match=r"context|refused") as caught:
        await LlamaCppEngine(asked).__aenter__()
    assert type(caught.value) is expected
