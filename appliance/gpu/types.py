"""What the GPU room says: inventories, shapes of models, and estimates of what they take.

All frozen, all integers of bytes. The scheduler imports these; nothing here computes more than a
sum. A device is named by its NVML UUID; host RAM is a device too, named `HOST`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from appliance.gpu.layer_table import LayerTable

HOST = "cpu"
"""The UUID of host RAM: where layers go that are on no card, and everything without a driver."""

MIB = 1 << 20
GIB = 1 << 30


# --- inventory: what is there ---------------------------------------------------------------


class Health(StrEnum):
    OK = "ok"
    DRAINING = "draining"
    """An Xid says: finish what runs, load nothing new."""
    RESET_REQUIRED = "reset_required"
    LOST = "lost"
    UNKNOWN = "unknown"
    """NVML answers with an error of its own; treated as unusable until a probe passes."""


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """One process on a card. `vram_bytes` is None where the driver will not say (some MIG)."""

    pid: int
    vram_bytes: int | None
    is_ours: bool


@dataclass(frozen=True, slots=True)
class Device:
    """One card, or host RAM, as last seen. Bytes; degrees Celsius; milliwatts; percent."""

    uuid: str
    index: int
    name: str
    total_bytes: int
    used_bytes: int
    free_bytes: int
    processes: tuple[ProcessUse, ...] = ()
    is_mig: bool = False
    temperature_c: int | None = None
    power_mw: int | None = None
    power_limit_mw: int | None = None
    utilisation_pct: int | None = None
    compute_capability: tuple[int, int] | None = None
    health: Health = Health.OK
    reason: str = ""
    """Why `health` is not ok: the NVML error or the Xid, in words."""
    last_xid: int | None = None
    is_stale: bool = False
    """True when the numbers are older than the last poll: its calls timed out or failed."""

    @property
    def is_host(self) -> bool:
        return self.uuid == HOST

    @property
    def is_usable(self) -> bool:
        """Something new may be loaded here."""
        return self.health is Health.OK

    @property
    def ours_bytes(self) -> int:
        return sum(use.vram_bytes or 0 for use in self.processes if use.is_ours)

    @property
    def foreign_bytes(self) -> int:
        """Used and not by us: other programs, and the driver's own share of the card."""
        return max(self.used_bytes - self.ours_bytes, 0)


@dataclass(frozen=True, slots=True)
class Inventory:
    """Every device at one instant (`taken_s`, monotonic); host RAM is always the last one."""

    devices: tuple[Device, ...]
    taken_s: float
    driver_version: str | None = None
    cuda_version: str | None = None
    nvml_error: str | None = None
    """Why there is no card to speak of: no library, no driver, a version mismatch, a hung call."""

    @property
    def gpus(self) -> tuple[Device, ...]:
        return tuple(device for device in self.devices if not device.is_host)

    @property
    def host(self) -> Device:
        return self.devices[-1]

    @property
    def is_stale(self) -> bool:
        return any(device.is_stale for device in self.devices)

    def device(self, uuid: str) -> Device | None:
        return next((device for device in self.devices if device.uuid == uuid), None)


# --- shape: what a model is -----------------------------------------------------------------


class KvType(StrEnum):
    """Element types of the KV cache, largest first."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q5_1 = "q5_1"
    Q5_0 = "q5_0"
    Q4_1 = "q4_1"
    Q4_0 = "q4_0"


class LayerKind(StrEnum):
    ATTENTION = "attention"
    SLIDING = "sliding"
    """Attention over a window of the last tokens only."""
    RECURRENT = "recurrent"
    NONE = "none"
    """A layer without a cache of its own: it shares another's, or is feed-forward alone."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One block. `k_width`, `v_width`: elements per token of its cache (0 for none);
    `r_width`, `s_width`: f32 elements per sequence of its recurrent state. `has_attention` and
    `has_recurrence` can both hold: some hybrids run the two side by side in one block."""

    kind: LayerKind
    weight_bytes: int
    expert_bytes: int = 0
    """Of `weight_bytes`, routed experts: what `--cpu-moe` style overrides move to the host."""
    n_head: int = 0
    k_width: int = 0
    v_width: int = 0
    r_width: int = 0
    s_width: int = 0
    n_ff: int = 0


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a model's header says of its memory: enough for the estimate, no tensor data.

    `input_bytes` is the token embedding (it stays on the host), `output_bytes` the head and the
    final norm (they count as one more layer); `tied_bytes` is that second copy of the embedding
    which a model without a head of its own makes on the head's device.
    """

    architecture: str
    name: str
    format: str
    """`gguf` or `safetensors`."""
    content_hash: str
    file_bytes: int
    layers: tuple[LayerShape, ...]
    input_bytes: int
    output_bytes: int
    tied_bytes: int
    n_embd: int
    n_vocab: int
    n_ctx_train: int
    n_head: int
    n_head_kv: int
    n_ff: int
    window_tokens: int = 0
    n_expert: int = 0
    n_expert_used: int = 0
    n_ff_expert: int = 0
    is_mla: bool = False
    is_encoder: bool = False
    is_exact: bool = True
    """False where llama.cpp gives the architecture cache classes of its own: ask the dry run."""
    parameters: Mapping[str, int] = field(default_factory=dict)
    """Further dimensions of the architecture that a term of the estimate reads."""

    @property
    def n_layer(self) -> int:
        return len(self.layers)

    @property
    def weight_bytes(self) -> int:
        blocks = sum(layer.weight_bytes for layer in self.layers)
        return self.input_bytes + self.output_bytes + self.tied_bytes + blocks


# --- estimate: what it will take ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlanParams:
    """How an engine would be started. `n_ctx` is llama.cpp's: cells of the cache over all
    sequences (a placement's `context_window` times its `slots`). `gpu_layers` counts the output
    head as one; `tensor_split` has one weight per card and is always pinned."""

    n_ctx: int
    n_seq_max: int = 1
    kv_type: KvType = KvType.F16
    kv_type_v: KvType | None = None
    """Of the values, where it differs from the keys'."""
    is_unified: bool = True
    swa_full: bool = False
    flash_attention: bool = True
    n_batch: int = 512
    n_ubatch: int = 512
    n_outputs_max: int | None = None
    """Rows of logits at once; None means `n_seq_max`, which is what our worker sets."""
    n_rs_seq: int = 0
    gpu_layers: int = 0
    tensor_split: tuple[float, ...] = ()
    devices: tuple[str, ...] = ()
    """UUIDs of the cards, in the engine's order; empty means the host alone."""

    @property
    def outputs(self) -> int:
        return self.n_seq_max if self.n_outputs_max is None else self.n_outputs_max


class Term(StrEnum):
    WEIGHTS = "weights"
    KV = "kv"
    STATE = "state"
    COMPUTE = "compute"
    CONTEXT = "context"
    POOL = "pool"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes by device and term. `basis` says where the numbers come from."""

    terms: Mapping[str, Mapping[Term, int]]
    basis: str = "formula"
    """`formula`, `dry_run` or `measured`."""
    notes: tuple[str, ...] = ()

    def bytes_on(self, uuid: str) -> int:
        return sum(self.terms.get(uuid, {}).values())

    @property
    def by_device(self) -> dict[str, int]:
        return {uuid: sum(terms.values()) for uuid, terms in self.terms.items()}

    @property
    def total_bytes(self) -> int:
        return sum(self.by_device.values())

    def total_of(self, *wanted: Term) -> int:
        return sum(terms.get(term, 0) for terms in self.terms.values() for term in wanted)


# --- placement: where it goes ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to run a model, before devices have names: what a `Footprint` is asked about.

    `shares` are the relative weights of the cards (their count is the number of cards; empty
    means host only)."""

    context_window: int
    slots: int
    kv_type: KvType
    gpu_layers: int
    shares: tuple[float, ...] = ()


class Footprint(Protocol):
    """How many bytes a model takes in a layout. Pure, and monotone in window and slots."""

    @property
    def n_layers(self) -> int:
        """Layers that can be put on a card, the output head counted as one."""
        ...

    def bytes_by_device(self, layout: Layout) -> tuple[int, ...]:
        """Bytes on each card of the layout in order, then bytes in host RAM: len(shares) + 1."""
        ...

    def most_layers(self, layout: Layout, room_bytes: int) -> int:
        """No card with so much room holds more, however the layers are split. Cheap, and never too
        low; what the card holds in truth is for `bytes_by_device` to say."""
        ...

    def layer_table(self, layout: Layout) -> LayerTable | None:
        """The bytes by layer in this configuration, where they add up whatever the split is; a load
        that was seen may still need more than they say."""
        ...


@dataclass(frozen=True, slots=True)
class FixedFootprint:
    """A model of one size whatever its window: for the planner and for engines that fix theirs."""

    vram_bytes: int
    host_bytes: int = 0
    n_layers: int = 1

    def bytes_by_device(self, layout: Layout) -> tuple[int, ...]:
        if not layout.shares or layout.gpu_layers == 0:
            return (*(0 for _ in layout.shares), self.vram_bytes + self.host_bytes)
        total = sum(layout.shares)
        on_card = [int(self.vram_bytes * share / total) for share in layout.shares]
        on_card[0] += self.vram_bytes - sum(on_card)
        return (*on_card, self.host_bytes)

    def most_layers(self, layout: Layout, room_bytes: int) -> int:
        if room_bytes >= self.vram_bytes:
            return self.n_layers
        return (room_bytes + 1) * self.n_layers // self.vram_bytes

    def layer_table(self, layout: Layout) -> None:
        return None
