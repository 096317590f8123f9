"""A conversation keeps the date it began with, so midnight costs nobody their KV cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest

from appliance.engines.llamacpp.dates import BeginningDates

from . import tiny_models
from .conftest import ask

MONDAY = date(2026, 3, 2)
TUESDAY = MONDAY + timedelta(days=1)
DATED = "{{ strftime_now('%Y-%m-%d') }}\n" + tiny_models.CHATML


def test_a_conversation_keeps_its_first_date_and_a_new_one_learns_the_day() -> None:
    dates = BeginningDates()
    assert dates.of("a", MONDAY) == MONDAY
    assert dates.of("a", TUESDAY) == MONDAY
    assert dates.of("b", TUESDAY) == TUESDAY
    assert dates.of(None, TUESDAY) == TUESDAY


def test_the_conversation_used_longest_ago_is_forgotten_first() -> None:
    dates = BeginningDates(limit=2)
    for key in ("a", "b", "a", "c"):
        dates.of(key, MONDAY)
    assert [dates.of(key, TUESDAY) for key in ("a", "c")] == [MONDAY, MONDAY]
    assert dates.of("b", TUESDAY) == TUESDAY


def test_a_conversation_keeps_its_date_when_its_model_is_loaded_anew(tmp_path: Path) -> None:
    path = tmp_path / "parked" / "dates.json"
    dates = BeginningDates(path)
    dates.of("a", MONDAY)
    dates.write()
    assert BeginningDates(path).of("a", TUESDAY) == MONDAY
    assert BeginningDates(path).of("b", TUESDAY) == TUESDAY


@pytest.mark.parametrize("found", [b"", b"{}", b"[1]", b'[["a", "yesterday"]]', b"\xff"])
def test_dates_that_cannot_be_read_count_for_nothing(tmp_path: Path, found: bytes) -> None:
    path = tmp_path / "dates.json"
    path.write_bytes(found)
    dates = BeginningDates(path)
    assert dates.of("a", TUESDAY) == TUESDAY
    dates.write()
    assert BeginningDates(path).of("a", MONDAY) == TUESDAY


def test_a_disk_that_takes_no_dates_harms_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    dates = BeginningDates(tmp_path / "taken" / "dates.json")
    assert dates.of("a", MONDAY) == MONDAY
    dates.write()


@pytest.mark.model
def test_the_next_turn_after_midnight_begins_with_the_same_tokens(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from appliance.engines.chat.template import ChatTemplate
    from appliance.engines.llamacpp.binding import Model
    from appliance.engines.llamacpp.params import LlamaCppParams
    from appliance.engines.llamacpp.prompt import Preparer

    days: Iterator[date] = iter((MONDAY, TUESDAY, TUESDAY))
    model = Model(LlamaCppParams(tiny_models.llama(tmp_path / "tiny.gguf")), lambda _: None)
    try:
        preparer = Preparer(
            model.vocab,
            ChatTemplate(DATED, bos_token="<s>", eos_token="</s>"),
            window=512,
            makes_checkpoints=False,
            today=lambda: next(days),
        )
        first = ask("Hello")
        before = preparer.prepare(dataclasses.replace(first, cache_key="session")).tokens
        after = preparer.prepare(dataclasses.replace(first, cache_key="session")).tokens
        other = preparer.prepare(dataclasses.replace(first, cache_key="another")).tokens
    finally:
        model.close()
    assert before == after
    assert before != other
