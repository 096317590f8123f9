"""Is the memory there? A worker looks at its cards before it allocates, and once more in between.

The daemon has promised this load its bytes, but a promise is arithmetic over what the driver showed
a moment ago. Another program may have come since, and those who made room may still be going: the
driver shows that late. The worker sees the card itself (the library asks CUDA, not NVML), so the
last word is here. It looks before the weights, and between the weights and the cache, which are
seconds apart; what is not there is waited for a little, then the load declines with `NoCapacity`,
which is tried again, having allocated nothing that could fail in the middle.

What another program takes between a look and its allocation is the library's to refuse. It does so
in words, mostly without crashing, and `is_shortage` knows the words. Refused the cache or the
scratch behind it, the library gives back both and keeps the weights: so that is waited for like
anything else, in vain at most until the load declines. The daemon meanwhile sees the other program,
and lets idle models go.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from appliance.errors import NoCapacity

Made = TypeVar("Made")
MIB = 1 << 20
CONTEXT_BYTES = 512 * MIB
"""Of a promise: what asking a card costs, its CUDA context. It is there when the answer comes."""
PATIENCE_S = 10.0
"""How long bytes that are being given back are waited for, before the weights and again before the
cache: an evicted worker may take as long to go (`LlamaCppParams.stop_grace_s`)."""
LOOK_EVERY_S = 0.05

_WEIGHTS = re.compile(r"(\w+) model buffer size = +([0-9.]+) MiB")
_SHORTAGE = re.compile(
    r"out of memory|insufficient memory|bad_alloc|(unable|failed) to allocate|cudaMalloc failed",
    re.IGNORECASE,
)


def is_shortage(log: str) -> bool:
    """The library's words say that an allocation was refused, not that the file is bad."""
    return _SHORTAGE.search(log) is not None


def weights_read(log: str) -> dict[str, int]:
    """Bytes of weights by the library's name of the card, as its log tells them."""
    return {name: int(float(mib) * MIB) for name, mib in _WEIGHTS.findall(log)}


class Look:
    """The looks of one load. `promised`: bytes on each card, in the library's order; `free` asks
    the cards, by the library's names for them."""

    def __init__(
        self,
        promised: Sequence[int],
        free: Callable[[], Mapping[str, int]],
        *,
        now_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._promised = promised
        self._free = free
        self._now_s = now_s
        self._sleep = sleep

    def before_weights(self) -> None:
        """Waits until all promised bytes are free. Raises `NoCapacity`."""
        if any(self._promised):
            self._await({}, PATIENCE_S)

    def allocate(self, create: Callable[[], Made | None], log: str) -> Made:
        """What comes after the weights, which `log` tells of, once what is left of the promise is
        free; `create` answers None if it is refused, and is asked again for as long as its bytes
        would have been waited for: not at all without a card. Raises `NoCapacity`."""
        taken, until_s = weights_read(log), self._now_s() + PATIENCE_S
        while True:
            if any(self._promised) and taken:
                self._await(taken, until_s - self._now_s())
            made = create()
            if made is not None:
                return made
            if self._now_s() >= until_s or not self._free():
                raise NoCapacity("what is left to allocate is refused: another program has it")
            self._sleep(LOOK_EVERY_S)

    def _await(self, taken: Mapping[str, int], patience_s: float) -> None:
        until_s = self._now_s() + patience_s
        while (missing := self._missing(taken)) is not None:
            if self._now_s() >= until_s:
                raise NoCapacity(f"{missing}: another program has it")
            self._sleep(LOOK_EVERY_S)

    def _missing(self, taken: Mapping[str, int]) -> str | None:
        for (card, free), promised in zip(self._free().items(), self._promised, strict=False):
            needed = promised - CONTEXT_BYTES - taken.get(card, 0)
            if free < needed:
                return f"{card} has {free // MIB} MiB free of {needed // MIB} MiB promised"
        return None
