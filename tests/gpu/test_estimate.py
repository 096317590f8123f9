"""The estimate against llama.cpp's own dry run, and the parts no dry run shows here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import BadRequest
from appliance.gpu.calibration import Calibration
from appliance.gpu.estimate import estimate, layer_devices
from appliance.gpu.estimate_file import estimate_file
from appliance.gpu.footprint import ShapeFootprint, sequence_count
from appliance.gpu.shape import read_shape
from appliance.gpu.types import (
    GIB,
    HOST,
    MIB,
    KvType,
    LayerKind,
    Layout,
    ModelShape,
    PlanParams,
    Term,
)
from tests.gpu.comparison import PEERS, SETTINGS, Row, compare
from tests.gpu.sketches.catalogue import SKETCHES
from tests.gpu.sketches.odd import small_glm4_moe
from tests.gpu.sparse import write

SHORT = [
    "llama-3.1-8b",
    "qwen2.5-0.5b",
    "gemma-3-4b",
    "gpt-oss-20b",
    "deepseek-v2-lite",
    "mamba-130m",
    "rwkv7-1.5b",
    "jamba-3b",
    "falcon-h1-1.5b",
    "lfm2-1.2b",
    "qwen3-next-80b",
    "bge-base",
    "gemma-3n-e2b",
    "kimi-linear-48b",
]
"""One of each kind of memory; the full table runs with --slow."""

SHORT_SETTINGS = [name for name in SETTINGS if name != "128k x16"]
PRINTED_BYTES = 11_000
"""The dry run's log prints hundredths of a MiB."""


def hold_to_the_dry_run(rows: list[Row]) -> None:
    for row in rows:
        off_weights = abs(row.our_weights - row.real_weights)
        off_cache = abs(row.our_cache - row.real_cache)
        assert off_weights <= 0.001 * row.real_weights, row
        assert off_cache <= max(0.001 * row.real_cache, 2 * PRINTED_BYTES), row
        assert row.is_within, row


@pytest.mark.parametrize("name", SHORT)
def test_weights_and_cache_are_exact_and_the_total_is_within_bounds(
    name: str, tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    hold_to_the_dry_run(compare(name, tmp_path, SHORT_SETTINGS))


@pytest.mark.slow
def test_the_same_holds_for_every_sketch_and_setting_and_beats_the_peers(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    rows = [row for name in SKETCHES for row in compare(name, tmp_path, list(SETTINGS))]
    hold_to_the_dry_run(rows)
    assert len({row.model for row in rows}) >= 40
    assert len({row.architecture for row in rows}) >= 15
    ours = sum(abs(row.error) for row in rows)
    for peer in PEERS:
        assert sum(abs(row.peer_error(peer)) for row in rows) >= 10 * ours


@pytest.fixture(scope="module")
def llama_8b(tmp_path_factory: pytest.TempPathFactory) -> ModelShape:
    return read_shape(write(SKETCHES["llama-3.1-8b"](), tmp_path_factory.mktemp("m")))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> ModelShape:
    return read_shape(write(SKETCHES["gemma-3-4b"](), tmp_path_factory.mktemp("m")))


def test_published_figures_are_met(llama_8b: ModelShape) -> None:
    of = estimate(llama_8b, PlanParams(32768))
    assert of.total_of(Term.KV) == 4 * GIB, "32 layers x 8 heads x 128 x 2 x 2 bytes x 32k"


def test_layers_go_to_cards_as_the_loader_assigns_them() -> None:
    plan = PlanParams(4096, gpu_layers=33, tensor_split=(3.0, 1.0), devices=("a", "b"))
    homes = layer_devices(32, plan)
    assert len(homes) == 33
    assert homes.count("a") == 25
    assert homes[-1] == "b"
    partial = layer_devices(32, PlanParams(4096, gpu_layers=10, devices=("a",)))
    assert partial[:23] == (HOST,) * 23
    assert partial[23:] == ("a",) * 10
    assert layer_devices(4, PlanParams(4096)) == (HOST,) * 5


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any),
    on_host=st.integers(0, 20),
)
@settings(max_examples=300)
def test_run_lengths_as_split_put_exactly_that_many_layers_on_each_card(
    counts: list[int], on_host: int
) -> None:
    layers = sum(counts)
    devices = tuple(f"card{n}" for n in range(len(counts)))
    plan = PlanParams(
        4096, gpu_layers=layers, tensor_split=tuple(map(float, counts)), devices=devices
    )
    homes = layer_devices(layers + on_host - 1, plan)
    assert [homes.count(device) for device in devices] == counts
    assert homes.count(HOST) == on_host


def test_a_tied_head_is_a_second_copy_only_on_a_card(gemma: ModelShape) -> None:
    host = estimate(gemma, PlanParams(4096))
    card = estimate(gemma, PlanParams(4096, gpu_layers=99, devices=("a",)))
    assert card.total_of(Term.WEIGHTS) - host.total_of(Term.WEIGHTS) == gemma.tied_bytes > 0
    assert card.terms[HOST][Term.WEIGHTS] == gemma.input_bytes


def test_quantised_kv_costs_a_pool_on_cards_alone(llama_8b: ModelShape) -> None:
    plan = PlanParams(8192, kv_type=KvType.Q8_0, gpu_layers=99, devices=("a",))
    on_card = estimate(llama_8b, plan)
    assert on_card.terms["a"][Term.POOL] == 8192 * 2 * 8 * 128 * 2
    assert Term.POOL not in estimate(llama_8b, PlanParams(8192, kv_type=KvType.Q8_0)).terms[HOST]


@given(
    window=st.integers(256, 65536),
    slots=st.integers(1, 16),
    more=st.integers(0, 8192),
    layers=st.integers(0, 32),
)
@settings(max_examples=200, deadline=None)
def test_more_window_slots_or_layers_never_need_less_on_a_card(
    llama_8b: ModelShape, window: int, slots: int, more: int, layers: int
) -> None:
    footprint = ShapeFootprint(llama_8b)

    def on_card(window: int, slots: int, layers: int) -> int:
        layout = Layout(window, slots, KvType.F16, layers, (1.0,))
        return footprint.bytes_by_device(layout)[0]

    base = on_card(window, slots, layers)
    assert on_card(window + more, slots, layers) >= base
    assert on_card(window, slots + 1, layers) >= base
    assert on_card(window, slots, layers + 1) >= base


def test_what_nvml_showed_corrects_the_next_estimate(llama_8b: ModelShape) -> None:
    plan = PlanParams(8192, 4, gpu_layers=99, devices=("GPU-1",))
    first = estimate(llama_8b, plan)
    seen = first.bytes_on("GPU-1") + 200 * MIB
    known = Calibration().after_load("key", first, {"GPU-1": seen})
    assert known.context_bytes("GPU-1") == first.terms["GPU-1"][Term.CONTEXT] + 200 * MIB
    second = known.corrected("key", estimate(llama_8b, plan, known))
    assert second.basis == "measured"
    assert seen <= second.bytes_on("GPU-1") <= seen * 1.011
    other = estimate(llama_8b, PlanParams(4096, gpu_layers=99, devices=("GPU-1",)), known)
    assert other.terms["GPU-1"][Term.CONTEXT] == known.context_bytes("GPU-1")
    assert known.after_load("key", second, {"GPU-1": seen - GIB}).measured["key", 0] == seen


def test_a_smaller_measurement_than_the_default_context_is_believed(llama_8b: ModelShape) -> None:
    plan = PlanParams(8192, gpu_layers=99, devices=("GPU-1",))
    of = estimate(llama_8b, plan)
    known = Calibration().after_load("key", of, {"GPU-1": of.bytes_on("GPU-1") - 300 * MIB})
    assert known.context_bytes("GPU-1") == of.terms["GPU-1"][Term.CONTEXT] - 300 * MIB


def test_what_was_learnt_is_kept_for_the_same_driver_and_library_only(
    llama_8b: ModelShape,
) -> None:
    plan = PlanParams(8192, gpu_layers=99, devices=("GPU-1",))
    of = estimate(llama_8b, plan)
    known = Calibration("580.10/0.3.36").after_load("key", of, {"GPU-1": of.bytes_on("GPU-1")})
    kept = json.loads(json.dumps(known.to_json()))
    assert Calibration.from_json(kept, "580.10/0.3.36") == known
    assert Calibration.from_json(kept, "590.00/0.3.36") == Calibration("590.00/0.3.36")


def test_a_file_is_told_by_term_and_device(tmp_path: Path) -> None:
    path = write(SKETCHES["gemma-3-4b"](), tmp_path)
    body = estimate_file(path, 8192, 4)
    terms = [body[f"{term.value}_bytes"] for term in Term]
    assert sum(terms) == body["total_bytes"] == body["by_device"][HOST]["total_bytes"]
    assert body["layers_by_kind"] == {"attention": 5, "sliding": 29}
    assert body["kv_bytes"] == 682 * MIB


@pytest.mark.parametrize(
    ("context", "slots", "kv"), [(0, 1, "f16"), (4096, 0, "f16"), (1, 1, "q3")]
)
def test_nonsense_is_refused(tmp_path: Path, context: int, slots: int, kv: str) -> None:
    path = write(SKETCHES["gemma-3-270m"](), tmp_path)
    with pytest.raises(BadRequest):
        estimate_file(path, context, slots, kv)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "gemma-3-4b", "mamba-130m", "jamba-3b"])
def test_the_footprint_counts_the_sequences_our_worker_asks_for(name: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from appliance.engines.llamacpp.params import LlamaCppParams
    from appliance.engines.llamacpp.worker import sequence_count as of_worker

    @dataclass
    class Loaded:
        is_recurrent: bool
        window_cells: int

    path = write(SKETCHES[name](), tmp_path)
    shape = read_shape(path)
    is_recurrent = any(layer.s_width for layer in shape.layers)
    for slots in (1, 4, 200):
        params = LlamaCppParams(path, slots=slots)
        loaded = Loaded(is_recurrent, shape.window_tokens)
        assert sequence_count(shape, slots) == of_worker(params, loaded)  # type: ignore[arg-type]


def test_a_draft_block_is_neither_loaded_nor_cached(tmp_path: Path) -> None:
    """Against a real load: `llama_model_size` counts the file's tensors, loaded or not."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    path = write(small_glm4_moe(), tmp_path)
    shape = read_shape(path)
    program = (
        "import sys, llama_cpp as lib\n"
        "params = lib.llama_model_default_params()\n"
        "params.load_mode = lib.LLAMA_LOAD_MODE_NONE\n"
        "params.use_extra_bufts = False\n"
        "assert lib.llama_model_load_from_file(sys.argv[1].encode(), params)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = re.search(r"model buffer size = +([0-9.]+) MiB", done.stderr)
    assert found is not None
    assert shape.layers[-1].kind is LayerKind.NONE
    assert shape.layers[-1].weight_bytes == 0
    assert abs(shape.weight_bytes / MIB - float(found[1])) < 0.01


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[ModelShape]:
    """One of each sort of layers: uniform, windowed, hybrid, experts, quantisable or not."""
    folder = tmp_path_factory.mktemp("mixed")
    names = ("llama-3.1-8b", "gemma-3-4b", "jamba-3b", "nemotron-h-8b", "deepseek-v2-lite")
    return [read_shape(write(SKETCHES[name](), folder)) for name in names]


@given(
    which=st.integers(0, 4),
    cuts=st.lists(st.integers(0, 60), min_size=1, max_size=3),
    window=st.sampled_from([512, 4096, 20000]),
    slots=st.integers(1, 6),
    kv_type=st.sampled_from([KvType.F16, KvType.Q8_0]),
)
@settings(max_examples=300, deadline=None)
def test_the_footprint_is_never_below_the_estimate_and_hardly_above(
    mixed: list[ModelShape],
    which: int,
    cuts: list[int],
    window: int,
    slots: int,
    kv_type: KvType,
) -> None:
    shape = mixed[which]
    footprint = ShapeFootprint(shape)
    left, counts = footprint.n_layers, []
    for cut in cuts:
        counts.append(min(cut, left))
        left -= counts[-1]
    layout = Layout(window, slots, kv_type, sum(counts), tuple(map(float, counts)))
    fast = footprint.bytes_by_device(layout)
    slow = footprint.estimate(layout)
    names = [*(f"card{n}" for n in range(len(counts))), HOST]
    whole = footprint.bytes_by_device(Layout(window, slots, kv_type, footprint.n_layers, (1.0,)))
    for size, name in zip(fast, names, strict=True):
        assert slow.bytes_on(name) <= size <= slow.bytes_on(name) + max(96 * MIB, 0.1 * sum(whole))
    if which == 0:
        assert list(fast) == [slow.bytes_on(name) for name in names], "uniform layers: the same"
    if left == 0:
        assert sum(fast) >= whole[0], "splitting never needs less: what pruning relies on"


def test_an_embedding_model_on_one_card_is_not_charged_for_the_hosts_outputs(
    tmp_path: Path,
) -> None:
    shape = read_shape(write(SKETCHES["qwen3-0.6b"](), tmp_path))
    footprint = ShapeFootprint(shape, embeddings=True)
    whole = Layout(8192, 4, KvType.F16, footprint.n_layers, (float(footprint.n_layers),))
    exact = footprint.estimate(whole)
    assert footprint.bytes_by_device(whole) == (exact.bytes_on("card0"), exact.bytes_on(HOST))
