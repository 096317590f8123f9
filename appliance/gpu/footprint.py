"""A model's shape as a `Footprint`: what placement asks, answered by the estimate."""

from __future__ import annotations

from appliance.gpu.calibration import Calibration
from appliance.gpu.estimate import estimate
from appliance.gpu.types import HOST, Estimate, Layout, ModelShape, PlanParams

MAX_REMEMBERED = 4096
"""Layouts whose answer is kept; placement asks the same ones again and again."""


class ShapeFootprint:
    """Bytes of a GGUF model in a layout. Remembers its answers; otherwise a pure function.

    Before cards are chosen they have no names, so the context of the hungriest calibrated card
    counts for each. `spare_sequences` are those the engine keeps beside its slots (a shared
    prefix, say)."""

    def __init__(
        self,
        shape: ModelShape,
        calibration: Calibration | None = None,
        *,
        spare_sequences: int = 0,
        n_batch: int = 2048,
        n_ubatch: int = 512,
    ) -> None:
        known = calibration or Calibration()
        worst = max(known.contexts.values(), default=known.context_bytes(""))
        self.shape = shape
        self._calibration = Calibration(contexts={f"card{n}": worst for n in range(_CARDS)})
        self._spare_sequences = spare_sequences
        self._batches = (n_batch, n_ubatch)
        self._answers: dict[Layout, tuple[int, ...]] = {}

    @property
    def n_layers(self) -> int:
        return self.shape.n_layer + 1

    def params(self, layout: Layout, devices: tuple[str, ...]) -> PlanParams:
        """How an engine is started for this layout on these cards."""
        return PlanParams(
            n_ctx=layout.context_window * layout.slots,
            n_seq_max=layout.slots + self._spare_sequences,
            kv_type=layout.kv_type,
            n_batch=self._batches[0],
            n_ubatch=self._batches[1],
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
