"""Where there is room for models: bytes by device, and which cards are closed to whom. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from appliance.gpu.types import Device, Inventory
from appliance.gpu.wants import Placement, PlacementPolicy, Want


@dataclass(frozen=True, slots=True)
class Space:
    """Where there is room: bytes by usable device, and who may not share which card."""

    room: Mapping[str, int]
    cards: tuple[str, ...]
    taken: frozenset[str] = frozenset()
    """Cards on which something of ours already is: closed to exclusive wants."""
    closed: frozenset[str] = frozenset()
    """Cards someone has for themselves."""

    def without(self, placements: Iterable[Placement]) -> Space:
        """What is left once these are made."""
        room, taken, closed = dict(self.room), set(self.taken), set(self.closed)
        for placement in placements:
            for uuid, size in placement.by_device.items():
                room[uuid] = room.get(uuid, 0) - size
            taken.update(placement.cards)
            if placement.exclusive:
                closed.update(placement.cards)
        return Space(room, self.cards, frozenset(taken), frozenset(closed))

    def cards_for(self, want: Want) -> tuple[str, ...]:
        return tuple(
            uuid
            for uuid in self.cards
            if (not want.pin or uuid in want.pin)
            and uuid not in self.closed
            and not (want.exclusive and uuid in self.taken)
        )


def room_on(device: Device, reserved_bytes: int, policy: PlacementPolicy) -> int:
    """Bytes that may still be promised on a device.

    What we have is the larger of what the ledger promised and what NVML shows of ours; the rest
    that is used is foreign. Of host RAM, where the kernel does not tell ours from others', all
    that is used counts beside what is promised."""
    if not device.is_usable:
        return 0
    ours = max(reserved_bytes, device.ours_bytes)
    return max(device.total_bytes - policy.reserve_of(device) - device.foreign_bytes - ours, 0)


def space_in(
    inventory: Inventory,
    reserved: Mapping[str, int],
    policy: PlacementPolicy,
    closed: frozenset[str] = frozenset(),
) -> Space:
    """The room there is now. `reserved`: the ledger's bytes by device UUID."""
    room = {
        device.uuid: room_on(device, reserved.get(device.uuid, 0), policy)
        for device in inventory.devices
    }
    cards = tuple(device.uuid for device in inventory.gpus if device.is_usable)
    taken = frozenset(uuid for uuid, size in reserved.items() if size > 0)
    return Space(room, cards, taken, closed)
