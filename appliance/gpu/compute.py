"""The compute buffer: scratch for the worst-case graph, by the few tensors alive at its peak.

llama.cpp reserves it in `sched_reserve` (`src/llama-context.cpp`) for `min(n_ctx, n_ubatch)`
tokens, `n_seq_max` sequences and `n_outputs_max` rows of logits. The allocator reuses memory as
tensors die (`ggml/src/ggml-alloc.c`), so the buffer is the attention mask, which lives through the
whole graph, and the largest set of tensors alive at once in one of these phases:

- feed-forward: gate, up and their product, and four rows of the model's width (residual, input,
  normed input, output); with experts, the width of all experts a token is routed to, and then
  their outputs weighed and summed;
- attention: without flash attention the scores of all heads against the whole cache; with latent
  attention the queries and outputs of all heads in latent space;
- recurrence: the mixed projections of a state-space layer, and the sequences' states in flight;
- output: the logits.

The multiples were read off the dry run over 53 model shapes and 7 settings: within 3 % or 96 MiB
of the whole in all of them, and never under by more than 1 % (docs/BENCHMARKS.md, estimate).
Where an exact figure matters, `oracle.py` has the library's own.
"""

from __future__ import annotations

from appliance.gpu.cache import cache_cells, ubatch_tokens
from appliance.gpu.types import HOST, LayerKind, LayerShape, ModelShape, PlanParams

F32 = 4
MASK_ELEMENT_BYTES = {True: 2, False: 4}
"""Of the mask, by whether flash attention is on (`build_attn_inp_kq_mask`)."""
ROWS_BESIDE = {"gemma3n": 10}
"""Rows of the model's width that live beside a feed-forward: Gemma 3n keeps four predictions of
its residual (`build_arch_graph` in `src/models/gemma3n.cpp`)."""
PIPELINE_COPIES = 4
"""Copies of the graph's inputs when a model is split over cards (`GGML_SCHED_MAX_COPIES`)."""


def compute_bytes(
    model: ModelShape, plan: PlanParams, homes: tuple[str, ...], uuid: str, *, is_pipelined: bool
) -> int:
    """Bytes of the compute buffer on one device; 0 on a card without layers.

    `homes` is where each block and the output head are (`estimate.layer_devices`)."""
    if uuid != HOST and uuid not in homes:
        return 0
    blocks = [layer for layer, home in zip(model.layers, homes, strict=False) if home == uuid]
    row = ubatch_tokens(plan) * model.n_embd * F32
    inputs = mask_bytes(model, plan)
    phases = [row]
    if blocks:
        beside = ROWS_BESIDE.get(model.architecture, 0) * row
        phases.append(_feed_forward(model, blocks, plan) + 4 * row + beside)
        phases.append(_combining(model, plan))
        attention = _scores(model, blocks, plan) + _latents(model, blocks, plan)
        phases.append(attention + 11 * row // 2)
        phases.append(_recurrence(model, blocks, plan))
    if homes[-1] == uuid:
        phases.append(_logits(model, plan) + 3 * row)
    return inputs + max(phases) + (pipeline_bytes(model, plan) if is_pipelined else 0)


def is_pipelined(homes: tuple[str, ...]) -> bool:
    """Split over several cards with nothing left on the host (`llama-context.cpp`)."""
    return len(set(homes)) > 1 and HOST not in homes


def pipeline_bytes(model: ModelShape, plan: PlanParams) -> int:
    """What pipeline parallelism adds to each device: further copies of the graph's inputs."""
    row = ubatch_tokens(plan) * model.n_embd * F32
    return (PIPELINE_COPIES - 1) * (mask_bytes(model, plan) + row)


def mask_bytes(model: ModelShape, plan: PlanParams) -> int:
    """One mask per kind of cache, as wide as a stream's cells."""
    cells: dict[LayerKind, int] = {}
    for layer in model.layers:
        cells[layer.kind] = max(cells.get(layer.kind, 0), _keys_seen(model, layer, plan))
    return sum(cells.values()) * ubatch_tokens(plan) * MASK_ELEMENT_BYTES[plan.flash_attention]


def _feed_forward(model: ModelShape, blocks: list[LayerShape], plan: PlanParams) -> int:
    routed = model.n_expert_used * (model.n_ff_expert or model.n_ff) if model.n_expert else 0
    has_dense = model.n_expert == 0 or any(layer.expert_bytes == 0 for layer in blocks)
    dense = max(layer.n_ff for layer in blocks) if has_dense else 0
    alive = 3 if model.parameters["is_gated"] else 1
    return alive * max(routed, dense) * ubatch_tokens(plan) * F32


def _combining(model: ModelShape, plan: PlanParams) -> int:
    """The routed experts' outputs, before and after their weights are applied."""
    if not model.n_expert:
        return 0
    width = 2 * model.n_expert_used * (model.n_embd + (model.n_ff_expert or model.n_ff))
    return width * ubatch_tokens(plan) * F32


def _latents(model: ModelShape, blocks: list[LayerShape], plan: PlanParams) -> int:
    """Latent attention: queries in latent space, with their rotary part, and the output there."""
    if not model.is_mla:
        return 0
    heads = max(layer.n_head for layer in blocks)
    width = 2 * model.parameters["kv_lora_rank"] + model.parameters["key_length"]
    return heads * width * ubatch_tokens(plan) * F32


def _scores(model: ModelShape, blocks: list[LayerShape], plan: PlanParams) -> int:
    if plan.flash_attention:
        return 0
    widest = max(_keys_seen(model, layer, plan) * layer.n_head for layer in blocks)
    return widest * ubatch_tokens(plan) * F32


def _keys_seen(model: ModelShape, layer: LayerShape, plan: PlanParams) -> int:
    """Keys one query is compared with: the cache, or in an encoder the batch itself."""
    return ubatch_tokens(plan) if model.is_encoder else cache_cells(model, layer, plan)


def _recurrence(model: ModelShape, blocks: list[LayerShape], plan: PlanParams) -> int:
    """Measured multiples; states move in and out of the cache once per sequence."""
    recurrent = [layer for layer in blocks if layer.s_width]
    if not recurrent:
        return 0
    state = max(layer.s_width + 2 * layer.r_width for layer in recurrent)
    tokens = ubatch_tokens(plan)
    of = model.parameters
    if of.get("wkv_head_size"):
        per_token = 19 * model.n_embd + model.n_embd // 4
        return (tokens * per_token + 3 * plan.n_seq_max * state) * F32
    mixed = 2 * of["n_group"] * of["d_state"]
    per_token = 13 * of["d_inner"] // 2 + 4 * mixed + of["dt_rank"] + model.n_embd
    return (tokens * per_token + plan.n_seq_max * state) * F32


def _logits(model: ModelShape, plan: PlanParams) -> int:
    if model.is_encoder:
        return 0
    return min(ubatch_tokens(plan), plan.outputs) * model.n_vocab * F32
