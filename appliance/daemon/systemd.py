"""What systemd is told: ready, stopping, status, and the watchdog's heartbeat.

The Python binding is optional; the protocol is one datagram to `NOTIFY_SOCKET` (sd_notify(3)).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable

try:
    from systemd import daemon as _binding
except ImportError:
    _binding = None

WATCHDOG_SHARE = 3
"""Three heartbeats a watchdog period: two may be late."""


def notify(*lines: str) -> None:
    """Send lines such as `READY=1`. Silent where nobody listens."""
    message = "\n".join(lines)
    if _binding is not None:
        _binding.notify(message)
        return
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as datagram:
        datagram.sendto(message.encode(), address)


def watchdog_s() -> float | None:
    """Seconds between two heartbeats systemd expects at most; None when it expects none."""
    try:
        period_s = int(os.environ.get("WATCHDOG_USEC", "0")) / 1_000_000
        is_ours = int(os.environ.get("WATCHDOG_PID", os.getpid())) == os.getpid()
    except ValueError:
        return None
    return period_s if period_s > 0 and is_ours else None


async def feed_watchdog(is_alive: Callable[[], Awaitable[None]]) -> None:
    """Prove life for as long as it lasts: `is_alive` goes through the scheduler and the store, so
    a heartbeat says that both still move, not merely that a timer runs."""
    period_s = watchdog_s()
    if period_s is None:
        return
    while True:
        async with asyncio.timeout(period_s):
            await is_alive()
        notify("WATCHDOG=1")
        await asyncio.sleep(period_s / WATCHDOG_SHARE)
