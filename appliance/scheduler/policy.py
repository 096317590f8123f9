"""The constants of scheduling, each with its reason, in one value that a test may change."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits and patience. Nothing here is fitted to a trace."""

    max_waiting: int = 4096
    """Requests queued in all; the next one is refused with a predicted wait."""

    max_overtaken: int = 32
    """How many later requests may pass one that waits for a model which is not loaded."""

    swap_share: float = 0.2
    """The part of the time that swapping may cost: a model keeps its place against waiters until it
    has worked `(1/share - 1)` times what the swap costs in load seconds."""

    hold_s: float = 2.0
    """How long an idle model is kept for an agent between two steps of a turn (a tool call, a
    short thought) while another model waits; only if its return is expected before a swap pays."""

    wait_for_dry: bool = False
    """Never unload a model while any other loaded one has work waiting: fewest loads, longest
    waits. For machines that serve one step at a time, and for measuring collation alone."""

    yields_to_foreign: bool = True
    """Idle models make way for what another program takes; else they stay, whoever is short."""

    foreign_calm_s: float = 10.0
    """Memory that another program gave back is used again after it stayed away this long."""

    preloads: bool = True
    """Whether an idle model makes way for one that nobody has asked for yet but is expected to.
    Not where loads are counted and take no time: there it cannot save any."""

    breaker_crashes: int = 3
    breaker_window_s: float = 60.0
    breaker_open_s: float = 60.0
    """Three crashes in a minute stop restarts for a minute; then one start is tried."""

    backoff_s: float = 1.0
    """Pause before restarting after a crash; doubles with each crash in the window."""

    seed_service_s: float = 2.0
    """Seconds a step takes before any was measured."""

    def swap_patience_s(self, cost_s: float) -> float:
        """How long busy models keep their place against a waiter if the swap takes `cost_s`."""
        return (1 / self.swap_share - 1) * cost_s
