"""What fits on these cards, and what waiting to expect there: `appliance plan`.

A plan is of an empty machine: only the operator's reserve is kept free. What fits together is
placement's own answer for all models at once; what a trace would meet is the core's own, on virtual
time, with the same sizes, on the same cards.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from appliance.config.units import parse_bytes
from appliance.errors import BadRequest
from appliance.gpu import refusal
from appliance.gpu.placement import search_any
from appliance.gpu.space import space_in
from appliance.gpu.types import Device, Inventory, Layout
from appliance.gpu.wants import NoFit, Placement, PlacementPolicy, Want
from appliance.scheduler.memory_placer import MemoryPlacer
from appliance.scheduler.replay import TraceRow
from appliance.scheduler.simulator import expect
from appliance.scheduler.together import together
from appliance.scheduler.values import DeviceView, ModelSpec
from appliance.scheduler.wanted import named_pins

LOAD_BYTES_PER_S = float(2 << 30)
"""A good NVMe disk through the page cache to the card; colder or slower disks: say so."""

MAX_CARDS = 64

_CARDS = re.compile(r"^(?:(\d+)\s*[x*]\s*)?([\d.]+\s*[A-Za-z]+)$")


@dataclass(frozen=True, slots=True)
class Waiting:
    """Waiting and swapping to expect, in seconds and counts, of all models or of one."""

    requests: int
    wait_p50_s: float
    wait_p95_s: float
    wait_p99_s: float
    wait_max_s: float
    loads: int
    swaps: int
    """How often it was evicted for another model."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What to expect of a trace. `refused` counts by reason."""

    all: Waiting
    by_model: Mapping[str, Waiting]
    refused: Mapping[str, int]


def cards_named(text: str) -> tuple[Device, ...]:
    """Cards from words such as `2x24GiB` or `80GB,2x24GiB`. Raises `BadRequest`."""
    cards: list[Device] = []
    for part in text.split(","):
        found = _CARDS.match(part.strip())
        if found is None:
            raise BadRequest(f"{part!r} names no cards", hint="write 2x24GiB or 80GB,2x24GiB")
        size = size_named(found[2])
        for _ in range(int(found[1] or 1)):
            index = len(cards)
            if index == MAX_CARDS:
                raise BadRequest(f"more than {MAX_CARDS} cards in {text!r}")
            cards.append(Device(f"gpu{index}", index, found[2], size, 0, size))
    return tuple(cards)


def size_named(text: str) -> int:
    """Bytes of a text such as `24GiB`. Raises `BadRequest`."""
    try:
        size = parse_bytes(text)
    except ValueError:
        raise BadRequest(f"{text!r} is not a size", hint="write 24GiB or 80GB") from None
    if size <= 0:
        raise BadRequest(f"{text!r} is not a size", hint="write 24GiB or 80GB")
    return size


def emptied(inventory: Inventory) -> Inventory:
    """The same devices with nothing on them."""
    devices = tuple(
        replace(device, used_bytes=0, free_bytes=device.total_bytes, processes=())
        for device in inventory.devices
    )
    return replace(inventory, devices=devices)


@dataclass(frozen=True, slots=True)
class Residents:
    """What can be loaded at the same time; the others take turns with it, or do not fit at all."""

    resident: tuple[Placement, ...]
    in_turn: tuple[Placement, ...]
    """Where those go that have to wait for a place: alone, beside the pinned."""
    refused: tuple[NoFit, ...]

    @property
    def promised(self) -> dict[str, int]:
        """Bytes per device by those that are resident."""
        total: Counter[str] = Counter()
        for placement in self.resident:
            total.update(placement.by_device)
        return total


def fit_together(
    specs: Sequence[ModelSpec], inventory: Inventory, policy: PlacementPolicy
) -> Residents:
    """Where all models go that take memory, or why not."""
    space = space_in(emptied(inventory), {}, policy)
    wants = wants_of(specs, inventory)
    pinned = {spec.name for spec in specs if spec.pinned}
    found = together(wants, pinned, space, policy)
    return Residents(
        tuple(found.resident.values()),
        tuple(p for name, p in found.alone.items() if p is not None and name not in found.resident),
        tuple(
            refusal.explain(want, found.beside_pinned, policy, search_any)
            for want in wants
            if found.alone[want.model] is None
        ),
    )


def wants_of(specs: Sequence[ModelSpec], inventory: Inventory) -> list[Want]:
    """What these models ask for; a card pinned by its index is named by its UUID."""
    named = (named_pins(spec, inventory).demand for spec in specs)
    return [want for want in named if isinstance(want, Want)]


def outlook(
    trace: Sequence[TraceRow],
    specs: Sequence[ModelSpec],
    inventory: Inventory,
    policy: PlacementPolicy,
    bytes_per_s: float = LOAD_BYTES_PER_S,
) -> Outlook:
    """What this trace would meet here. Raises `BadRequest` for models that are not planned."""
    unknown = sorted({row.model for row in trace} - {spec.name for spec in specs})
    if unknown:
        raise BadRequest(
            f"the trace asks for {', '.join(unknown)}, which the plan does not have",
            hint="add it to config.toml, fetch its file, or leave its rows out",
        )
    wants = {want.model: want for want in wants_of(specs, inventory)}
    known = [_with_load_time(spec, wants, bytes_per_s) for spec in specs]
    views = [
        DeviceView(device.uuid, max(device.total_bytes - policy.reserve_of(device), 0))
        for device in inventory.devices
    ]
    exclusive = {name for name, want in wants.items() if want.exclusive}
    found = expect(
        trace,
        known,
        views,
        lambda holdings: MemoryPlacer(holdings, exclusive.__contains__),
        bytes_per_s,
    )
    asked = Counter(row.model for row in trace)
    by_model = {
        model: _waiting(
            asked[model], found.waits_s.get(model, ()), found.loads[model], found.evictions[model]
        )
        for model in sorted(asked)
    }
    waits = [wait for waits in found.waits_s.values() for wait in waits]
    loads, swaps = sum(found.loads.values()), sum(found.evictions.values())
    return Outlook(_waiting(len(trace), waits, loads, swaps), by_model, found.refused)


def _waiting(requests: int, waits_s: Sequence[float], loads: int, swaps: int) -> Waiting:
    ordered = sorted(waits_s)
    p50_s, p95_s, p99_s, max_s = (_quantile(ordered, share) for share in (0.50, 0.95, 0.99, 1.0))
    return Waiting(requests, p50_s, p95_s, p99_s, max_s, loads, swaps)


def _with_load_time(spec: ModelSpec, wants: Mapping[str, Want], bytes_per_s: float) -> ModelSpec:
    """The model with its load seconds as modelled, from the bytes of its weights and least cache
    (the core learns the rest from its first load)."""
    want = wants.get(spec.name)
    if want is None:
        return spec
    layout = Layout(want.least_window, want.min_slots, want.kv_types[0], 0)
    return replace(
        spec, demand=want, load_s=sum(want.footprint.bytes_by_device(layout)) / bytes_per_s
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    if not ordered:
        return 0.0
    return round(ordered[min(int(len(ordered) * share), len(ordered) - 1)], 3)
