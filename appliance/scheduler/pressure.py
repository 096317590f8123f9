"""When there is less memory than promised: idle instances go until the rest has room again.

Another program took memory, a device vanished, or a load took more than estimated. What is idle is
unloaded, least valuable first, before the free bytes fall below the operator's reserve; what works
finishes its steps and goes when it falls idle, if memory is still short then. Pinned ones stay.
"""

from __future__ import annotations

from appliance.scheduler.book import Book
from appliance.scheduler.outlook import density
from appliance.scheduler.values import DeviceView, ResidentState


def observe(book: Book, devices: tuple[DeviceView, ...], now_s: float) -> None:
    """Takes in what the devices show."""
    for device in devices:
        book.foreign.observe(device.device, device.foreign_bytes, now_s)
        book.views[device.device] = device
    seen = {device.device for device in devices}
    for gone in [name for name in book.views if name not in seen]:
        del book.views[gone]
        book.ledger.close(gone)
        book.epoch += 1
    refresh(book, now_s)


def refresh(book: Book, now_s: float) -> None:
    """Sets each device's budget: what it has less what is left to other programs."""
    if not book.foreign.may_have_changed(now_s):
        return
    for name, view in book.views.items():
        budget = max(view.capacity_bytes - book.foreign.held(name, now_s), 0)
        if budget != book.ledger.capacity(name) or name not in book.ledger.accounts():
            book.ledger.set_capacity(name, budget)
            book.epoch += 1


def relieve(book: Book, now_s: float) -> bool:
    """Unloads idle instances on every device that is short; True if any went."""
    unloaded = False
    for device in book.ledger.overdrawn():
        short = book.ledger.short(device)
        if not book.policy.yields_to_foreign:
            short -= book.foreign.held(device, now_s)
        short -= sum(
            book.ledger.held_by(i.instance_id).get(device, 0)
            for i in book.instances.values()
            if i.state is ResidentState.STOPPING
        )
        idle = [
            i
            for i in book.instances.values()
            if i.state is ResidentState.READY
            and not i.leases
            and not i.spec.pinned
            and book.ledger.held_by(i.instance_id).get(device, 0) > 0
        ]
        for instance in sorted(idle, key=lambda i: (density(book, i, now_s), i.instance_id)):
            if short <= 0:
                break
            short -= book.ledger.held_by(instance.instance_id)[device]
            book.record(
                now_s,
                "yield",
                instance.model,
                instance=instance.instance_id,
                device=device,
                short_bytes=book.ledger.short(device),
                foreign_bytes=book.foreign.held(device, now_s),
            )
            book.leave(instance, f"{device} is short of memory", now_s)
            unloaded = True
    return unloaded
