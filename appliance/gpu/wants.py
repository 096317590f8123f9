"""The values of placement: what is wanted of the cards, where it goes, or why it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.gpu.types import GIB, HOST, MIB, Device, Footprint, KvType


@dataclass(frozen=True, slots=True)
class Want:
    """A model someone wants loaded, and what the config allows to shrink.

    `context_window` and `slots` are what is wished; the `min_` values what is allowed; equal
    means no shrinking. `kv_types` in order of preference. `pin` holds UUIDs it must live on
    (all its cards among them); `exclusive` keeps every other model off its cards. Lower
    `priority` goes first (as in `types.Priority`).
    """

    model: str
    footprint: Footprint
    context_window: int
    slots: int = 1
    min_context_window: int | None = None
    min_slots: int = 1
    kv_types: tuple[KvType, ...] = (KvType.F16,)
    pin: tuple[str, ...] = ()
    exclusive: bool = False
    priority: int = 1
    worth: float = 1.0
    """What it is worth to have it loaded, against others as urgent."""
    allow_split: bool = True
    allow_partial: bool = True
    """Some layers on the host, when all else is shrunk."""
    allow_host: bool = True
    """All layers on the host: always so without a card; last resort with one."""
    gpu_layers: int | None = None
    """Exactly so many layers on cards and the rest on the host, or nowhere; None: all if may be."""
    least_on_cards: float = 0.0
    """Share of the layers without which it is rather not placed, where there are cards."""

    @property
    def is_elastic(self) -> bool:
        """It may be placed with less than is wished."""
        return (
            self.min_slots < self.slots
            or self.least_window < self.context_window
            or len(self.kv_types) > 1
        )

    @property
    def least_window(self) -> int:
        low = self.min_context_window
        return self.context_window if low is None else min(low, self.context_window)


@dataclass(frozen=True, slots=True)
class DeviceShare:
    uuid: str
    vram_bytes: int
    """Bytes promised on this device (RAM when the device is the host)."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model goes and how it is started; `reasons` tell what was shrunk and why."""

    model: str
    devices: tuple[DeviceShare, ...]
    gpu_layers: int
    context_window: int
    slots: int
    kv_type: KvType
    on_cards: float = 1.0
    """`gpu_layers` as a share of all."""
    tensor_split: tuple[float, ...] = ()
    exclusive: bool = False
    reasons: tuple[str, ...] = ()

    @property
    def n_ctx(self) -> int:
        return self.context_window * self.slots

    @property
    def by_device(self) -> dict[str, int]:
        return {share.uuid: share.vram_bytes for share in self.devices}

    @property
    def cards(self) -> tuple[str, ...]:
        return tuple(share.uuid for share in self.devices if share.uuid != HOST)


@dataclass(frozen=True, slots=True)
class Choice:
    """Something near the wish that would fit, in words and numbers."""

    text: str
    context_window: int | None = None
    slots: int | None = None
    kv_type: KvType | None = None
    free_bytes: int | None = None
    """Bytes that would have to be freed on `uuid`."""
    uuid: str | None = None


@dataclass(frozen=True, slots=True)
class NoFit:
    """Nothing allowed fits. `needed_bytes` is the smallest allowed configuration on the best
    device set, `available_bytes` what that set has now."""

    model: str
    reason: str
    needed_bytes: int
    available_bytes: Mapping[str, int]
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True, slots=True)
class PlacementPolicy:
    """What is kept free: `reserve_bytes` on every card and what `reserves` says for single ones;
    `host_reserve_bytes` of RAM for the rest of the machine."""

    reserve_bytes: int = 512 * MIB
    reserves: Mapping[str, int] = field(default_factory=dict)
    host_reserve_bytes: int = 2 * GIB
    binpack: bool = True
    """Fill the fullest card that fits first (keeps big holes); False spreads."""

    def reserve_of(self, device: Device) -> int:
        if device.is_host:
            return self.host_reserve_bytes
        return self.reserves.get(device.uuid, self.reserve_bytes)
