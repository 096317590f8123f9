"""What a vLLM instance takes, and the KV bytes it is told to take.

vLLM by itself claims a fraction of the whole card and gives what is left after a profile run to
its KV cache; two instances started together then charge each other's weights to themselves
(vllm issue 55827). Passing `kv_cache_memory_bytes` skips the fraction: the KV is our order, and
only activations, graphs and the context are left to predict, which calibration then corrects.

    bytes per card = weights / TP + KV / TP + activations + graphs + context

Sources, vLLM 0.32: `vllm/v1/kv_cache_interface.py` (page sizes; sliding windows keep
`ceil(min(window - 1 + batch, max length) / block) + 1` blocks a request), `vllm/v1/worker/
gpu_worker.py` (`determine_available_memory`), `vllm/config/cache.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from appliance.gpu.calibration import Calibration
from appliance.gpu.safetensors import read_shape
from appliance.gpu.types import HOST, MIB, Estimate, KvType, LayerKind, Layout, ModelShape, Term
from appliance.gpu.wants import Placement

BLOCK_TOKENS = 16
SPARE_TOKENS = 256
"""The empty block that is never used, and the rounding where blocks are larger (128 on a CPU)."""
GRAPH_BYTES = 768 * MIB
"""Allowance for captured CUDA graphs, until a load was measured."""
HOST_BYTES = 2048 * MIB
"""RAM of the server and its workers: interpreter, torch, pinned staging."""
ELEMENT_BYTES = {KvType.Q8_0: 1}
"""`q8_0` stands for vLLM's fp8 cache; all else is two bytes."""
_TOO_MUCH = 1 << 62


@dataclass(frozen=True, slots=True)
class VllmPlan:
    """How an instance would be started. `devices` has one card per tensor-parallel rank."""

    context_window: int
    slots: int
    kv_type: KvType = KvType.F16
    devices: tuple[str, ...] = ()
    batched_tokens: int = 2048
    """`--max-num-batched-tokens`: what the activations are sized for."""


def kv_cache_bytes(model: ModelShape, plan: VllmPlan) -> int:
    """`kv_cache_memory_bytes` for one rank: every slot's full window, in whole blocks."""
    element = ELEMENT_BYTES.get(plan.kv_type, 2)
    ranks = max(len(plan.devices), 1)
    total = 0
    for layer in model.layers:
        blocks = _blocks(model, layer.kind, plan)
        tokens = blocks * BLOCK_TOKENS * plan.slots + (SPARE_TOKENS if blocks else 0)
        width = layer.k_width + layer.v_width
        total += tokens * (width if model.is_mla else -(-width // ranks)) * element
    return total


def rank_kv_bytes(folder: Path, ordered_bytes: int, placement: Placement) -> int:
    """KV cache of one rank in this placement: what was ordered for all of them, else every slot's
    full window. Raises `ModelBroken` for a folder that cannot be read."""
    if ordered_bytes:
        return ordered_bytes // max(len(placement.cards), 1)
    plan = VllmPlan(placement.context_window, placement.slots, placement.kv_type, placement.cards)
    return kv_cache_bytes(read_shape(folder), plan)


def estimate_vllm(
    model: ModelShape, plan: VllmPlan, calibration: Calibration | None = None
) -> Estimate:
    """Bytes by card (one rank each) and term, and the host's."""
    known = calibration or Calibration()
    ranks = max(len(plan.devices), 1)
    activations = plan.batched_tokens * (3 * model.n_ff // ranks + 6 * model.n_embd) * 2
    logits = plan.slots * model.n_vocab * 4
    terms: dict[str, dict[Term, int]] = {
        uuid: {
            Term.WEIGHTS: -(-model.weight_bytes // ranks),
            Term.KV: kv_cache_bytes(model, plan),
            Term.COMPUTE: activations + logits,
            Term.CONTEXT: known.context_bytes(uuid),
            Term.POOL: GRAPH_BYTES,
        }
        for uuid in plan.devices
    }
    terms[HOST] = {Term.CONTEXT: HOST_BYTES}
    notes = () if model.is_exact else ("recurrent state is not in this estimate: measure it",)
    return Estimate(terms, notes=notes)


class VllmFootprint:
    """A folder in a layout: exactly `ranks` cards with one equal share each, or, with the CPU
    build, all of it in host RAM. `ordered_kv_bytes` is the KV of all ranks where it was ordered."""

    def __init__(
        self,
        shape: ModelShape,
        ranks: int = 1,
        calibration: Calibration | None = None,
        *,
        ordered_kv_bytes: int = 0,
    ) -> None:
        self.shape = shape
        self._ranks = ranks
        self._ordered_kv_bytes = ordered_kv_bytes
        known = calibration or Calibration()
        self._context_bytes = max(known.contexts.values(), default=known.context_bytes(""))

    @property
    def n_layers(self) -> int:
        return self._ranks

    def bytes_by_device(self, layout: Layout) -> tuple[int, ...]:
        if layout.gpu_layers == 0:
            plan = VllmPlan(layout.context_window, layout.slots, layout.kv_type)
            kv = self._ordered_kv_bytes or kv_cache_bytes(self.shape, plan)
            return (*(0 for _ in layout.shares), self.shape.weight_bytes + kv + HOST_BYTES)
        if layout.gpu_layers < self._ranks:
            return (*(_TOO_MUCH for _ in layout.shares), _TOO_MUCH)
        names = tuple(f"card{n}" for n in range(self._ranks))
        of = estimate_vllm(
            self.shape,
            VllmPlan(layout.context_window, layout.slots, layout.kv_type, names),
            Calibration(contexts=dict.fromkeys(names, self._context_bytes)),
        )
        each = of.bytes_on(names[0])
        if self._ordered_kv_bytes:
            each += self._ordered_kv_bytes // self._ranks - of.terms[names[0]][Term.KV]
        cards = (0 if n == 0 else each if n == 1 else _TOO_MUCH for n in layout.shares)
        return (*cards, of.bytes_on(HOST))

    def most_layers(self, layout: Layout, room_bytes: int) -> int:
        return 1

    def layer_table(self, layout: Layout) -> None:
        return None


def _blocks(model: ModelShape, kind: LayerKind, plan: VllmPlan) -> int:
    if kind not in (LayerKind.ATTENTION, LayerKind.SLIDING):
        return 0
    if kind is LayerKind.ATTENTION or model.window_tokens == 0:
        return -(-plan.context_window // BLOCK_TOKENS)
    held = min(model.window_tokens - 1 + plan.batched_tokens, plan.context_window)
    return -(-held // BLOCK_TOKENS) + 1
