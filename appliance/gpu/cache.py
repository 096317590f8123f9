"""How many cells a layer's cache has, and how many tokens one graph takes. Sizes of the cache.

Source: llama.cpp `src/llama-context.cpp` (`n_ctx_seq`), `src/llama-kv-cache-iswa.cpp`.
"""

from __future__ import annotations

from appliance.gpu.types import LayerKind, LayerShape, ModelShape, PlanParams

CELL_PADDING = 256
"""Cells of a cache come in multiples of this (`GGML_PAD(n_ctx, 256)`)."""


def cache_cells(model: ModelShape, layer: LayerShape, plan: PlanParams) -> int:
    """Cells per stream of this layer's cache; 0 without one."""
    if layer.kind not in (LayerKind.ATTENTION, LayerKind.SLIDING):
        return 0
    total = pad(max(plan.n_ctx, 1), CELL_PADDING)
    cells = total if plan.is_unified else pad(max(total // plan.n_seq_max, 1), CELL_PADDING)
    if layer.kind is LayerKind.ATTENTION or plan.swa_full:
        return cells
    window = model.window_tokens * (plan.n_seq_max if plan.is_unified else 1)
    return pad(min(cells, window + ubatch_tokens(plan)), CELL_PADDING)


def ubatch_tokens(plan: PlanParams) -> int:
    """Tokens of one graph: a physical batch no larger than the logical one or the cache."""
    return min(plan.n_ubatch, plan.n_batch, plan.n_ctx)


def pad(value: int, to: int) -> int:
    return -(-value // to) * to
