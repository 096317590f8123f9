"""What a model will take, in bytes by device and term: `estimate(model, plan) -> Estimate`.

    VRAM(device) = weights + KV + state + compute + context + pool          (+ output, host only)

Pure, under a millisecond: placement calls it in its inner loop. Weights, KV and state are exact;
they follow llama.cpp line by line and are held to its dry run by tests. The compute buffer has no
closed form across architectures: `compute.py` has a bound for the fast path and `oracle.py` the
library's own answer. What no source tells (the CUDA context) is learnt: `calibration.py`.

Sources, all llama.cpp as bundled with the pinned llama-cpp-python:
weights and their devices `src/llama-model.cpp` (`load_tensors`, `get_layer_buft_list`);
KV `src/llama-kv-cache.cpp`, windowed layers `src/llama-kv-cache-iswa.cpp`;
state `src/llama-memory-recurrent.cpp`; sizes `src/llama-context.cpp`
(`n_ctx_seq`, `output_reserve`).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from appliance.gpu.cache import cache_cells
from appliance.gpu.calibration import Calibration
from appliance.gpu.compute import compute_bytes, is_pipelined
from appliance.gpu.ggml_types import KV_BLOCKS, row_bytes
from appliance.gpu.types import HOST, Estimate, KvType, LayerShape, ModelShape, PlanParams, Term

NO_CALIBRATION = Calibration()


def estimate(
    model: ModelShape, plan: PlanParams, calibration: Calibration = NO_CALIBRATION
) -> Estimate:
    """Bytes by device and term for this model started this way."""
    homes = layer_devices(model.n_layer, plan)
    terms: dict[str, dict[Term, int]] = {uuid: {} for uuid in (*plan.devices, HOST)}
    _add(terms[HOST], Term.WEIGHTS, model.input_bytes)
    for layer, uuid in zip(model.layers, homes, strict=False):
        on = terms[uuid]
        _add(on, Term.WEIGHTS, layer.weight_bytes)
        _add(on, Term.KV, kv_bytes(model, layer, plan))
        _add(on, Term.STATE, state_bytes(layer, plan))
    _add(terms[homes[-1]], Term.WEIGHTS, model.output_bytes)
    if homes[-1] != HOST:
        _add(terms[homes[-1]], Term.WEIGHTS, model.tied_bytes)
    _add(terms[HOST], Term.OUTPUT, output_bytes(model, plan))
    pipelined = is_pipelined(homes)
    for uuid, on in terms.items():
        _add(on, Term.COMPUTE, compute_bytes(model, plan, homes, uuid, is_pipelined=pipelined))
        if uuid != HOST and uuid in homes:
            _add(on, Term.CONTEXT, calibration.context_bytes(uuid))
            _add(on, Term.POOL, pool_bytes(model, plan, homes, uuid))
    notes = () if model.is_exact else (f"{model.architecture}: its cache needs the dry run",)
    return Estimate({uuid: _without_zeros(on) for uuid, on in terms.items()}, notes=notes)


def layer_devices(n_layer: int, plan: PlanParams) -> tuple[str, ...]:
    """The device of each block, then of the output head (`n_layer + 1` items).

    The last `gpu_layers` of blocks and head are on cards; which card: the first whose cumulative
    share exceeds the layer's position (`std::upper_bound` in float, so we round to float too).
    """
    everything = n_layer + 1
    if not plan.devices or plan.gpu_layers <= 0:
        return (HOST,) * everything
    active = min(plan.gpu_layers, everything)
    start = everything - active
    shares = plan.tensor_split or (1.0,) * len(plan.devices)
    bounds: list[float] = []
    total = 0.0
    for share in shares:
        total = _float32(total + _float32(share))
        bounds.append(total)
    bounds = [_float32(bound / total) for bound in bounds]

    def home(il: int) -> str:
        if il < start:
            return HOST
        position = _float32((il - start) / active)
        card = next((n for n, bound in enumerate(bounds) if bound > position), len(bounds) - 1)
        return plan.devices[card]

    return tuple(home(il) for il in range(everything))


def kv_bytes(model: ModelShape, layer: LayerShape, plan: PlanParams) -> int:
    cells = cache_cells(model, layer, plan)
    if cells == 0:
        return 0
    streams = 1 if plan.is_unified else plan.n_seq_max
    value_type = plan.kv_type if plan.kv_type_v is None else plan.kv_type_v
    v_width = layer.v_width
    if not plan.flash_attention and v_width:
        v_width = max(other.v_width for other in model.layers)
    row = row_bytes(KV_BLOCKS[plan.kv_type], layer.k_width)
    row += row_bytes(KV_BLOCKS[value_type], v_width)
    return streams * cells * row


def state_bytes(layer: LayerShape, plan: PlanParams) -> int:
    """f32 state of a recurrent layer: independent of the context window."""
    sequences = max(plan.n_seq_max, 1)
    return sequences * (1 + plan.n_rs_seq) * (layer.r_width + layer.s_width) * 4


def output_bytes(model: ModelShape, plan: PlanParams) -> int:
    """Logits, and an encoder's embeddings, for the caller in host memory (`output_reserve`)."""
    width = model.n_vocab + (model.n_embd if model.is_encoder else 0)
    return plan.n_seq_max * width * 4


def pool_bytes(model: ModelShape, plan: PlanParams, homes: tuple[str, ...], uuid: str) -> int:
    """Scratch of the CUDA pool: with quantised KV, flash attention converts one layer's keys and
    values to f16 (llama.cpp PR 23907 reserves it at start, sized by the whole cache)."""
    if plan.kv_type in _UNCONVERTED or not plan.flash_attention:
        return 0
    streams = 1 if plan.is_unified else plan.n_seq_max
    return max(
        (
            cache_cells(model, layer, plan) * streams * (layer.k_width + layer.v_width) * 2
            for layer, home in zip(model.layers, homes, strict=False)
            if home == uuid
        ),
        default=0,
    )


_UNCONVERTED = frozenset({KvType.F16, KvType.BF16, KvType.F32})


def _float32(value: float) -> float:
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


def _add(terms: dict[Term, int], term: Term, size: int) -> None:
    terms[term] = terms.get(term, 0) + size


def _without_zeros(terms: Mapping[Term, int]) -> dict[Term, int]:
    return {term: size for term, size in terms.items() if size}
