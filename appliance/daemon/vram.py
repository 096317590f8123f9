"""What NVML shows of our model processes: what they hold, and that a dead one's bytes are back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.daemon.sizes import Sizes
from appliance.gpu.inventory import Prober
from appliance.gpu.types import HOST, Inventory
from appliance.scheduler.values import Fit, ModelSpec


@dataclass(frozen=True, slots=True)
class _Loaded:
    spec: ModelSpec
    fit: Fit


class VramWatch:
    """`scheduler.dispatcher.MemoryWatch` on the inventory's snapshots.

    A process is looked at when its load is done, and at every snapshot from then on (`observe`):
    scratch that only work needs comes later. The most that was seen is what `Sizes` learns.
    """

    def __init__(self, prober: Prober, sizes: Sizes, path_of: Callable[[str], Path | None]) -> None:
        self._prober = prober
        self._sizes = sizes
        self._path_of = path_of
        self._loaded: dict[int, _Loaded] = {}

    async def foresee(self, spec: ModelSpec, fit: Fit) -> None:
        """Raises `NoCapacity` where the library itself says that more is needed than promised."""
        path = self._path_of(spec.name)
        if path is not None:
            await self._sizes.foresee(spec, fit, path)

    async def measured(self, spec: ModelSpec, fit: Fit, pid: int) -> Mapping[str, int]:
        """Bytes by card that this process holds. Of host RAM the kernel tells none: weights are
        mapped, and what is mapped is everybody's."""
        if all(device == HOST for device in fit.bytes_by_device):
            return {}
        self._loaded[pid] = _Loaded(spec, fit)
        inventory = await self._prober.probe()
        self.observe(inventory)
        return held_by(inventory, pid)

    def observe(self, inventory: Inventory) -> None:
        """Learns from a snapshot; what is stale teaches nothing."""
        if inventory.is_stale:
            return
        listed = {use.pid for card in inventory.gpus for use in card.processes}
        for pid, loaded in self._loaded.items():
            if pid in listed:
                self._sizes.learn(loaded.spec, loaded.fit, held_by(inventory, pid))

    async def returned(self, pid: int, devices: Sequence[str]) -> None:
        """Returns once no card among `devices` lists the process any more. Host RAM is returned
        with the process itself."""
        self._loaded.pop(pid, None)
        if all(device == HOST for device in devices):
            return
        if not holds(await self._prober.probe(), pid, devices):
            return
        async for inventory in self._prober.snapshots():
            if not holds(inventory, pid, devices):
                return


def held_by(inventory: Inventory, pid: int) -> dict[str, int]:
    """Bytes by card that a process holds, where the driver says."""
    return {
        card.uuid: use.vram_bytes
        for card in inventory.gpus
        for use in card.processes
        if use.pid == pid and use.vram_bytes
    }


def holds(inventory: Inventory, pid: int, devices: Sequence[str]) -> bool:
    """Whether a process still has memory on one of these cards, as far as can be seen: a card
    whose numbers are stale says nothing new, and one that is lost holds nothing."""
    return any(
        use.pid == pid
        for device in inventory.devices
        if device.uuid in devices and device.is_usable
        for use in device.processes
    )
