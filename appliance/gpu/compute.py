"""The compute buffer: scratch for the worst-case graph, by a bound over its few largest tensors.

llama.cpp reserves it in `sched_reserve` (`src/llama-context.cpp`) for `min(n_ctx, n_ubatch)`
tokens, `n_seq_max` sequences and `n_outputs_max` rows of logits; the allocator reuses memory as
tensors die, so the buffer is the largest sum of tensors alive at once, not the sum of all.
"""

from __future__ import annotations

from appliance.gpu.types import HOST, ModelShape, PlanParams


def compute_bytes(model: ModelShape, plan: PlanParams, homes: tuple[str, ...], uuid: str) -> int:
    """Bytes of the compute buffer on one device; 0 on a card without layers."""
    if uuid != HOST and uuid not in homes:
        return 0
    tokens = min(plan.n_ctx, plan.n_ubatch, plan.n_batch)
    outputs = min(tokens, plan.outputs)
    feed_forward = tokens * (2 * max(model.n_ff, 1) + 3 * model.n_embd) * 4
    logits = outputs * (model.n_vocab + model.n_embd) * 4
    return max(feed_forward, logits)
