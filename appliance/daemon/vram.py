"""What NVML shows of our model processes: that a dead one's bytes are really back."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.gpu.inventory import Prober
from appliance.gpu.types import HOST, Inventory


class VramWatch:
    """`scheduler.dispatcher.MemoryWatch` on the inventory's snapshots."""

    def __init__(self, prober: Prober) -> None:
        self._prober = prober

    async def returned(self, pid: int, devices: Sequence[str]) -> None:
        """Returns once no card among `devices` lists the process any more. Host RAM is returned
        with the process itself."""
        if all(device == HOST for device in devices):
            return
        if not holds(await self._prober.probe(), pid, devices):
            return
        async for inventory in self._prober.snapshots():
            if not holds(inventory, pid, devices):
                return


def holds(inventory: Inventory, pid: int, devices: Sequence[str]) -> bool:
    """Whether a process still has memory on one of these cards, as far as can be seen: a card
    whose numbers are stale says nothing new, and one that is lost holds nothing."""
    return any(
        use.pid == pid
        for device in inventory.devices
        if device.uuid in devices and device.is_usable
        for use in device.processes
    )
