"""Where conversations lie in the KV cache, and when they had better leave it."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.engines.llamacpp.params import LlamaCppParams
from appliance.engines.llamacpp.sequences import IDLE_S, MemoryKind, Sequences, Start

from . import tiny_models

ATTENTION = MemoryKind(is_recurrent=False, window=0)
SHARED = list(range(90))


def began(sequences: Sequences, tokens: list[int]) -> int:
    start = sequences.find(tokens, None, None, {})
    assert isinstance(start, Start)
    sequences.occupy(start, tokens, None, None)
    sequences.advance(start.target, len(tokens))
    return start.target


def test_who_lies_idle_is_in_the_way_when_the_rent_has_come_to_the_price() -> None:
    sequences = Sequences(4, ATTENTION)
    alone = began(sequences, [7] * 100)
    sequences.release(alone, [7] * 100, now_s=10.0)
    assert sequences.in_the_way(10.0 + IDLE_S * 0.99) is None
    late = sequences.in_the_way(10.0 + IDLE_S)
    assert late is not None and late.sequence == alone


def test_who_shares_most_of_its_cells_may_stay_the_longer() -> None:
    sequences = Sequences(4, ATTENTION)
    running = began(sequences, [*SHARED, 1])
    other = began(sequences, [*SHARED, *[2] * 10])
    assert running != other
    sequences.release(other, [*SHARED, *[2] * 10], now_s=0.0)
    assert sequences.in_the_way(IDLE_S * 9.9) is None
    assert sequences.in_the_way(IDLE_S * 10) is sequences[other]


def test_a_running_answer_is_never_in_the_way() -> None:
    sequences = Sequences(4, ATTENTION)
    tokens = [7] * 100
    sequence = began(sequences, tokens)
    sequences.release(sequence, tokens, now_s=0.0)
    assert began(sequences, [*tokens, 8]) == sequence
    assert sequences.in_the_way(1e9) is None


def test_what_was_let_lie_is_not_asked_about_again() -> None:
    sequences = Sequences(4, ATTENTION)
    sequence = began(sequences, [7] * 100)
    sequences.release(sequence, [7] * 100, now_s=0.0)
    sequences.let_lie(sequences[sequence])
    assert sequences.in_the_way(1e9) is None


@pytest.mark.model
@pytest.mark.parametrize("ram_bytes", [1 << 20, 1 << 10], ids=["RAM has room", "RAM has none"])
def test_a_conversation_in_the_way_leaves_the_cache_for_ram_or_stays(
    tmp_path: Path, ram_bytes: int
) -> None:
    pytest.importorskip("llama_cpp")
    from appliance.engines.llamacpp.binding import Batch, Context, Model
    from appliance.engines.llamacpp.kv_cache import KvCache
    from appliance.engines.llamacpp.parking import ParkingLot

    params = LlamaCppParams(tiny_models.llama(tmp_path / "tiny.gguf"), context_window=256, slots=2)
    model = Model(params, lambda _: None)
    context = Context(model, params, 4)
    batch = Batch(context.batch_tokens)
    lot = ParkingLot("key", folder=None, ram_bytes=ram_bytes, disk_bytes=0)
    cache = KvCache(context, lot, sequences=4, kind=ATTENTION)
    tokens = [65 + n % 20 for n in range(100)]
    begun = cache.begin(tokens, None, None)
    assert begun is not None
    sequence, _ = begun
    batch.add(sequence, 0, tokens, output=True)
    assert context.decode(batch) == 0
    cache.advance(sequence, len(tokens))
    cache.release(sequence, tokens, 0.0)

    cache.thin_out(IDLE_S)

    leaves = ram_bytes == 1 << 20
    assert context.last_position(sequence) == (-1 if leaves else 99)
    assert len(lot) == (1 if leaves else 0)
    again = cache.begin([*tokens, 90], None, None)
    assert again is not None and again[1] == 100
    assert context.last_position(again[0]) == 99
    batch.close()
    context.close()
    model.close()
