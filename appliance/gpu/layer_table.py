"""What each run of a model's layers takes on a card, from sums made once per configuration. Pure.

Placement asks for thousands of splits of one configuration. The bytes of a run of layers are one
subtraction of two sums and what a card adds once, whatever the other cards hold; so the most layers
that a card holds from a position on is one search in the sums.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerTable:
    """One configuration of one model. Layers are counted from the front, the head is the last.

    A card adds something once, by what it has: blocks, the head, or both. With `pipeline_bytes` on
    each where all layers are on cards, and on more than one. Of all that `margin` thousandths more
    are promised.
    """

    sums: tuple[int, ...]
    """`sums[n]`: the bytes of the first n layers."""
    lightest: int
    """Bytes of the lightest layer that weighs anything."""
    in_lightest: int
    """How many of those weigh no more than all layers: each counts as many as it weighs, whole."""
    blocks_once: int
    head_once: int
    both_once: int
    pipeline_bytes: int
    margin: int

    def bytes_on_card(self, start: int, end: int, *, is_pipelined: bool) -> int:
        """What is promised for the layers from `start` to `end`, at least one."""
        size = self.sums[end] - self.sums[start] + self._once(start, end)
        return self.with_margin(size + (self.pipeline_bytes if is_pipelined else 0))

    def with_margin(self, size: int) -> int:
        return size + -(-size * self.margin // 1000)

    def most_layers(self, room_bytes: int) -> int:
        """No more than this are on any card with so much room, however the layers are split."""
        once = min(self.blocks_once, self.head_once, self.both_once)
        usable = max(room_bytes * 1000 // (1000 + self.margin) - once, 0)
        return usable // self.lightest

    def bounds(self, rooms: Sequence[int]) -> tuple[list[int], list[int]]:
        """For each of several cards with so much room that share all layers, the most bytes of
        layers that it could hold, beside the least that it adds once, and the most of the lightest
        layer."""
        once = min(self.blocks_once, self.head_once, self.both_once) + self.pipeline_bytes
        scale, lightest = 1000 + self.margin, self.lightest
        sizes = [
            size if (size := room_bytes * 1000 // scale - once) > 0 else 0 for room_bytes in rooms
        ]
        return sizes, [size // lightest for size in sizes]

    def fill(self, layers: int, rooms: Sequence[int]) -> list[int]:
        """Of the last `layers` as many on each card in turn as it holds; short of `layers` where
        some are left over."""
        sums, every = self.sums, len(self.sums) - 1
        at = first = every - layers
        more_bytes = self.pipeline_bytes if first == 0 else 0
        counts = []
        for room_bytes in rooms:
            usable = room_bytes * 1000 // (1000 + self.margin)  # the most that fits with its margin
            rest = sums[every] - sums[at] + self._once(at, every)
            if rest + (more_bytes if at > first else 0) <= usable:
                counts.append(every - at)
                break
            usable -= self.blocks_once + more_bytes
            take = bisect_right(sums, sums[at] + usable, at, every) - 1 - at
            counts.append(max(take, 0))
            at += counts[-1]
        return counts

    def _once(self, start: int, end: int) -> int:
        every = len(self.sums) - 1
        if end < every:
            return self.blocks_once
        return self.both_once if start < every - 1 else self.head_once
