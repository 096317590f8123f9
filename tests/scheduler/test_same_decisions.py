"""What is remembered within a decision changes no decision."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest

from appliance.gpu.footprint import ShapeFootprint
from appliance.gpu.placement import search_any
from appliance.gpu.shape import read_shape
from appliance.gpu.space import Space
from appliance.gpu.types import GIB, HOST, Footprint, ModelShape
from appliance.gpu.wants import PlacementPolicy, Want
from appliance.scheduler.core import Core
from appliance.scheduler.memory_placer import MemoryPlacer
from appliance.scheduler.policy import Policy
from appliance.scheduler.values import (
    ConfigChanged,
    DeviceView,
    Effect,
    Event,
    Fit,
    Grant,
    InstanceFailed,
    InstanceGone,
    InstanceReady,
    InventoryChanged,
    LeaseReleased,
    Misfit,
    ModelSpec,
    Record,
    StartInstance,
    StepRequested,
    StopInstance,
    Tick,
)
from tests.gpu.sketches.catalogue import SKETCHES
from tests.gpu.sparse import write
from tests.gpu.test_filling import Untabled

CARDS = tuple(DeviceView(f"gpu{n}", size * GIB) for n, size in enumerate((16, 12, 8, 8, 6)))
HOST_RAM = DeviceView(HOST, 64 * GIB)


class Plain:
    """Searches for every answer, and asks for the bytes of every split."""

    def place(self, spec: ModelSpec, free: Mapping[str, int], least: float = 0.0) -> Fit | Misfit:
        want = spec.demand
        assert isinstance(want, Want)
        space = Space(dict(free), tuple(uuid for uuid in free if uuid != HOST))
        policy = PlacementPolicy(reserve_bytes=0, host_reserve_bytes=0)
        found = search_any(replace(want, least_on_cards=least), space, policy)
        if found is None:
            return Misfit(lambda: "no room")
        is_less = (found.slots, found.context_window) < (want.slots, want.context_window)
        return Fit(found.by_device, found.slots, found, found.on_cards, is_less)

    def fits(self, spec: ModelSpec, free: Mapping[str, int], least: float = 0.0) -> bool:
        return isinstance(self.place(spec, free, least), Fit)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> list[ModelShape]:
    folder = tmp_path_factory.mktemp("shapes")
    names = ("llama-3.1-8b", "llama-3.2-3b", "qwen2.5-7b", "gemma-3-4b")
    return [read_shape(write(SKETCHES[name](), folder)) for name in names]


def models(shapes: list[ModelShape], *, is_tabled: bool) -> tuple[ModelSpec, ...]:
    rng = random.Random(0)
    found = []
    for number in range(14):
        shape: Footprint = ShapeFootprint(shapes[number % len(shapes)], is_promise=True)
        if not is_tabled:
            assert isinstance(shape, ShapeFootprint)
            shape = Untabled(shape)
        want = Want(
            f"m{number}", shape, rng.choice((4096, 8192, 12288)), slots=3,
            min_slots=rng.choice((1, 3)), allow_partial=number % 5 == 0,
            allow_host=number % 5 == 0,
        )  # fmt: skip
        found.append(ModelSpec(want.model, 3, demand=want))
    return tuple(found)


def run(core: Core, specs: tuple[ModelSpec, ...], seed: int) -> list[list[Effect]]:
    """All that is decided on a day of steps, deaths and another program's memory; and after
    each event a tick at the same moment, which finds nobody left to grant, to load or to evict."""
    rng = random.Random(seed)
    told = [
        core.handle(InventoryChanged((*CARDS, HOST_RAM)), 0.0),
        core.handle(ConfigChanged(specs), 0.0),
    ]
    now_s, leases, todo = 0.0, list[str](), list[Event]()
    for number in range(400):
        now_s += rng.choice((0.0, 0.1, 2.0))
        if todo and rng.random() < 0.7:
            event: Event = todo.pop(rng.randrange(len(todo)))
        elif leases and rng.random() < 0.6:
            event = LeaseReleased(leases.pop(rng.randrange(len(leases))), 20, 1.0)
        elif rng.random() < 0.03:
            card = rng.choice(CARDS)
            taken = replace(card, foreign_bytes=rng.choice((0, card.capacity_bytes // 2)))
            rest = tuple(c for c in CARDS if c is not card)
            event = InventoryChanged((*rest, taken, HOST_RAM))
        else:
            agent = rng.randrange(12)
            name = f"m{(agent * 5 + rng.randrange(3)) % len(specs)}"
            event = StepRequested(f"r{number}", f"a{agent}", (name,))
        told.append(core.handle(event, now_s))
        for effect in told[-1]:
            match effect:
                case Grant():
                    leases.append(effect.lease_id)
                case StartInstance() if rng.random() < 0.05:
                    todo += [InstanceFailed(effect.instance_id, "no luck", crashed=True)]
                    todo += [InstanceGone(effect.instance_id)]
                case StartInstance():
                    todo.append(InstanceReady(effect.instance_id, 5.0, 3))
                case StopInstance():
                    todo.append(InstanceGone(effect.instance_id))
                case _:
                    pass
        late = core.handle(Tick(), now_s)
        assert not {"grant", "load", "evict"} & {e.kind for e in late if isinstance(e, Record)}
    return told


@pytest.mark.parametrize("seed", range(3))
def test_decisions_are_the_same_with_and_without_what_is_remembered(
    shapes: list[ModelShape], seed: int
) -> None:
    plain = Core(Plain(), Policy())
    remembering = Core(MemoryPlacer(lambda: remembering.holdings(), lambda _: False), Policy())
    one = run(plain, models(shapes, is_tabled=False), seed)
    other = run(remembering, models(shapes, is_tabled=True), seed)
    kinds = {e.kind for effects in one for e in effects if isinstance(e, Record)}
    assert {"load", "evict", "grant"} <= kinds, "it was a day on which something happened"
    for mine, theirs in zip(one, other, strict=True):
        assert _told(mine) == _told(theirs)


def _told(effects: list[Effect]) -> list[Effect]:
    """Without the footprint, which differs."""
    return [
        replace(e, spec=replace(e.spec, demand=0)) if isinstance(e, StartInstance) else e
        for e in effects
    ]
