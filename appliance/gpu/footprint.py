"""A model's shape as a `Footprint`: what placement asks, answered by the estimate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from appliance.gpu.calibration import Calibration, load_key
from appliance.gpu.compute import compute_bytes, pipeline_bytes
from appliance.gpu.estimate import (
    estimate,
    kv_bytes,
    layer_devices,
    output_bytes,
    pool_bytes,
    state_bytes,
)
from appliance.gpu.layer_table import LayerTable
from appliance.gpu.types import HOST, Estimate, KvType, LayerShape, Layout, ModelShape, PlanParams

MAX_SEQUENCES = 256
"""llama.cpp's limit (`LLAMA_MAX_SEQ`)."""
ESTIMATE_MARGIN = 30
"""Thousandths by which an estimate may be low (docs/BENCHMARKS.md, estimate), promised on top of
it until a load of the model was measured."""
MEASURED_MARGIN = 10
"""The same for a model that was measured, for the configurations in which it was not."""
MAX_TABLES = 512
"""Configurations remembered; a search for a window asks some thirty."""


def sequence_count(shape: ModelShape, slots: int) -> int:
    """Sequence ids our llama.cpp worker asks for: beside its slots as many again for idle
    conversations, where they cost nothing but cells (a state or a window costs each its own)."""
    costs_each = any(layer.s_width or layer.r_width for layer in shape.layers)
    if costs_each or shape.window_tokens:
        return slots
    return min(2 * slots + 2, MAX_SEQUENCES)


class ShapeFootprint:
    """Bytes of a GGUF model in a layout. Remembers its tables; otherwise a pure function.

    Before cards are chosen they have no names, so the context of the hungriest calibrated card
    counts for each. `embeddings`: the model embeds whole texts in one batch. With `is_promise`
    the bytes are what is promised: the estimate with its margin on top, and no less than a load
    of this very layout was seen to take.

    Placement asks for thousands of splits of one configuration. So for each configuration the
    per-layer bytes are summed once from the front (a run of layers is then one subtraction), and
    the compute buffer, a maximum over the layers at hand, is taken over one layer of each sort
    the model has: never less than `estimate` says, and the same where the sorts are spread evenly.
    """

    def __init__(
        self,
        shape: ModelShape,
        calibration: Calibration | None = None,
        *,
        embeddings: bool = False,
        n_batch: int = 2048,
        n_ubatch: int = 512,
        is_promise: bool = False,
    ) -> None:
        known = calibration or Calibration()
        is_known = known.knows(shape)
        self._known = known if is_promise and is_known else None
        self._margin = (MEASURED_MARGIN if is_known else ESTIMATE_MARGIN) if is_promise else 0
        self._seen: dict[Layout, tuple[int, ...]] = {}
        self.shape = shape
        self.n_layers = shape.n_layer + 1
        self._sorts = replace(shape, layers=_sorts(shape))
        self._context_bytes = max(known.contexts.values(), default=known.context_bytes(""))
        self._is_embedding = embeddings or shape.is_encoder
        self._batches = (n_batch, n_ubatch)
        self._tables: dict[tuple[int, int, KvType], _Table] = {}

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
        """The whole estimate of one layout, by term; cards are called card0, card1, ..."""
        names = tuple(f"card{n}" for n in range(len(layout.shares)))
        return self.estimate_on(self.params(layout, names))

    def estimate_on(self, plan: PlanParams) -> Estimate:
        """The same for a start on cards that have names."""
        known = Calibration(contexts=dict.fromkeys(plan.devices, self._context_bytes))
        return estimate(self.shape, plan, known)

    def bytes_by_device(self, layout: Layout) -> tuple[int, ...]:
        """Cards in order, then the host. `shares` are the numbers of layers on each card, as
        placement has them; other weights are first turned into such numbers."""
        counts, layers = self._counts(layout), self.n_layers
        table = self._table(layout)
        by_layer = table.cards
        at = layers - sum(counts)
        is_pipelined = at == 0 and sum(1 for count in counts if count) > 1
        host = table.host_bytes(at) + (by_layer.pipeline_bytes if is_pipelined else 0)
        sizes = []
        for count in counts:
            end = at + count
            sizes.append(by_layer.bytes_on_card(at, end, is_pipelined=is_pipelined) if count else 0)
            at = end
        sizes.append(by_layer.with_margin(host))
        if self._known is None:
            return tuple(sizes)
        return tuple(map(max, sizes, (*self._needed(self._known, layout), 0)))

    def most_layers(self, layout: Layout, room_bytes: int) -> int:
        return self._table(layout).cards.most_layers(room_bytes)

    def layer_table(self, layout: Layout) -> LayerTable:
        return self._table(layout).cards

    def _needed(self, known: Calibration, layout: Layout) -> tuple[int, ...]:
        """Bytes on each card that a load of this layout was seen to need; 0 where none was."""
        needed = self._seen.get(layout)
        if needed is None:
            if len(self._seen) >= MAX_TABLES:
                self._seen.clear()
            key = load_key(self.shape, self.params(layout, ()))
            cards = range(len(layout.shares))
            needed = self._seen[layout] = tuple(known.needed(key, card) for card in cards)
        return needed

    def _counts(self, layout: Layout) -> tuple[int, ...]:
        if sum(layout.shares) == layout.gpu_layers <= self.n_layers:
            return tuple(int(share) for share in layout.shares)
        names = tuple(f"card{n}" for n in range(len(layout.shares)))
        homes = layer_devices(self.shape.n_layer, self.params(layout, names))
        return tuple(homes.count(name) for name in names)

    def _table(self, layout: Layout) -> _Table:
        key = (layout.context_window, layout.slots, layout.kv_type)
        table = self._tables.get(key)
        if table is None:
            if len(self._tables) >= MAX_TABLES:
                self._tables.clear()
            table = self._tables[key] = self._tabulate(layout)
        return table

    def _tabulate(self, layout: Layout) -> _Table:
        plan = self.params(replace(layout, gpu_layers=0, shares=()), ())
        per_sort = {
            _sort(layer): kv_bytes(self.shape, layer, plan) + state_bytes(layer, plan)
            for layer in self.shape.layers
        }
        sums = [0]
        for layer in self.shape.layers:
            sums.append(sums[-1] + layer.weight_bytes + per_sort[_sort(layer)])
        sums.append(sums[-1] + self.shape.output_bytes + self.shape.tied_bytes)

        layers = [after - before for before, after in pairwise(sums)]
        lightest = min((size for size in layers if size), default=1)

        def once(has_blocks: bool, has_head: bool) -> int:
            return self._context_bytes + self._scratch(plan, "card", has_blocks, has_head)

        def on_host(has_blocks: bool, has_head: bool) -> int:
            return (
                self.shape.input_bytes
                + output_bytes(self.shape, plan)
                + self._scratch(plan, HOST, has_blocks, has_head)
                - (self.shape.tied_bytes if has_head else 0)
            )

        return _Table(
            cards=LayerTable(
                sums=tuple(sums),
                lightest=lightest,
                in_lightest=sum(size // lightest for size in layers),
                blocks_once=once(True, False),
                head_once=once(False, True),
                both_once=once(True, True),
                pipeline_bytes=pipeline_bytes(self._sorts, plan),
                margin=self._margin,
            ),
            host_once=(on_host(False, False), on_host(True, False), on_host(True, True)),
        )

    def _scratch(self, plan: PlanParams, uuid: str, has_blocks: bool, has_head: bool) -> int:
        """Compute buffer and pool of a device with a layer of each sort, or the head, or both."""
        sorts = len(self._sorts.layers)
        homes = (uuid if has_blocks else "elsewhere",) * sorts
        homes = (*homes, uuid if has_head else "elsewhere")
        size = compute_bytes(self._sorts, plan, homes, uuid, is_pipelined=False)
        return size if uuid == HOST else size + pool_bytes(self._sorts, plan, homes, uuid)


@dataclass(frozen=True, slots=True)
class _Table:
    """One configuration: what cards take, and what the host adds once, without a margin, where it
    has no layers, blocks, or all (which needs no second copy of the embedding)."""

    cards: LayerTable
    host_once: tuple[int, int, int]

    def host_bytes(self, layers: int) -> int:
        """What the host takes for the first `layers`."""
        sums = self.cards.sums
        return sums[layers] + self.host_once[(layers > 0) + (layers == len(sums) - 1)]


def _sort(layer: LayerShape) -> LayerShape:
    """The layer without its weights: what its cache and its scratch depend on."""
    return replace(layer, weight_bytes=0, expert_bytes=min(layer.expert_bytes, 1))


def _sorts(shape: ModelShape) -> tuple[LayerShape, ...]:
    return tuple(dict.fromkeys(_sort(layer) for layer in shape.layers))
