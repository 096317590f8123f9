"""A model's shape as a `Footprint`: what placement asks, answered by the estimate."""

from __future__ import annotations

from appliance.gpu.calibration import Calibration
from appliance.gpu.estimate import estimate
from appliance.gpu.types import HOST, Estimate, Layout, ModelShape, PlanParams

MAX_SEQUENCES = 256
"""llama.cpp's limit (`LLAMA_MAX_SEQ`)."""
MAX_REMEMBERED = 4096
"""Layouts whose answer is kept; placement asks the same ones again and again."""


def sequence_count(shape: ModelShape, slots: int) -> int:
    """Sequence ids our llama.cpp worker asks for: beside its slots as many again for idle
    conversations, where they cost nothing but cells (a state or a window costs each its own)."""
    costs_each = any(layer.s_width or layer.r_width for layer in shape.layers)
    if costs_each or shape.window_tokens:
        return slots
    return min(2 * slots + 2, MAX_SEQUENCES)


class ShapeFootprint:
    """Bytes of a GGUF model in a layout. Remembers its answers; otherwise a pure function.

    Before cards are chosen they have no names, so the context of the hungriest calibrated card
    counts for each. `embeddings`: the model embeds whole texts in one batch."""

    def __init__(
        self,
        shape: ModelShape,
        calibration: Calibration | None = None,
        *,
        embeddings: bool = False,
        n_batch: int = 2048,
        n_ubatch: int = 512,
    ) -> None:
        known = calibration or Calibration()
        worst = max(known.contexts.values(), default=known.context_bytes(""))
        self.shape = shape
        self._calibration = Calibration(contexts={f"card{n}": worst for n in range(_CARDS)})
        self._is_embedding = embeddings or shape.is_encoder
        self._batches = (n_batch, n_ubatch)
        self._answers: dict[Layout, tuple[int, ...]] = {}

    @property
    def n_layers(self) -> int:
        return self.shape.n_layer + 1

    def params(self, layout: Layout, devices: tuple[str, ...]) -> PlanParams:
        """How an engine is started for this layout on these cards."""
        n_batch, n_ubatch = self._batches
        sequences = sequence_count(self.shape, layout.slots)
        outputs = sequences
        if self._is_embedding:
            n_batch = n_ubatch = outputs = max(n_ubatch, layout.context_window)
            sequences = layout.slots
        return PlanParams(
            n_ctx=layout.context_window * layout.slots,
            n_seq_max=sequences,
            kv_type=layout.kv_type,
            n_batch=max(n_batch, n_ubatch),
            n_ubatch=n_ubatch,
            n_outputs_max=outputs,
            gpu_layers=layout.gpu_layers,
            tensor_split=layout.shares,
            devices=devices,
        )

    def estimate(self, layout: Layout) -> Estimate:
        devices = tuple(f"card{n}" for n in range(len(layout.shares)))
        return estimate(self.shape, self.params(layout, devices), self._calibration)

    def bytes_by_device(self, layout: Layout) -> tuple[int, ...]:
        known = self._answers.get(layout)
        if known is None:
            of = self.estimate(layout)
            cards = (of.bytes_on(f"card{n}") for n in range(len(layout.shares)))
            known = (*cards, of.bytes_on(HOST))
            if len(self._answers) >= MAX_REMEMBERED:
                self._answers.clear()
            self._answers[layout] = known
        return known


_CARDS = 64
