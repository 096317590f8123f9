"""One model placed on a machine as it is, or refused in words, as the scheduler does it."""

from __future__ import annotations

from collections.abc import Mapping

from appliance.gpu import refusal
from appliance.gpu.placement import DEFAULT_POLICY, search_any
from appliance.gpu.space import space_in
from appliance.gpu.types import Inventory
from appliance.gpu.wants import NoFit, Placement, PlacementPolicy, Want


def place(
    want: Want,
    inventory: Inventory,
    reserved: Mapping[str, int],
    *,
    policy: PlacementPolicy = DEFAULT_POLICY,
    closed: frozenset[str] = frozenset(),
) -> Placement | NoFit:
    """Where one more model goes beside what is promised."""
    space = space_in(inventory, reserved, policy, closed)
    return search_any(want, space, policy) or refusal.explain(want, space, policy, search_any)
