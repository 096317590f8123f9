"""Idle memory is put to use, and never at anybody's cost."""

from __future__ import annotations

from dataclasses import replace

from appliance.scheduler.core import Core
from appliance.scheduler.foreign import ForeignHold
from appliance.scheduler.placing import BestFit
from appliance.scheduler.policy import Policy
from appliance.scheduler.values import (
    AgentSpec,
    ConfigChanged,
    DeviceView,
    Effect,
    Event,
    Grant,
    InstanceFailed,
    InstanceGone,
    InstanceReady,
    InventoryChanged,
    LeaseReleased,
    ModelSpec,
    StartInstance,
    StepRequested,
    StopInstance,
    Tick,
)


class Machine:
    """Cards of 100 bytes; stops are done at once."""

    def __init__(self, *models: ModelSpec, cards: int = 1) -> None:
        self.core = Core(BestFit(), Policy(foreign_calm_s=10.0))
        self.now_s = 0.0
        self.loads: list[str] = []
        self.loading: dict[str, StartInstance] = {}
        self.granted: list[str] = []
        self.send(InventoryChanged(tuple(DeviceView(f"gpu{n}", 100) for n in range(cards))))
        self.send(ConfigChanged(models))

    def send(self, event: Event, after_s: float = 0.0) -> list[Effect]:
        self.now_s += after_s
        effects = self.core.handle(event, self.now_s)
        for effect in effects:
            match effect:
                case StartInstance():
                    self.loads.append(effect.spec.name)
                    self.loading[effect.instance_id] = effect
                case StopInstance():
                    self.loading.pop(effect.instance_id, None)
                    self.send(InstanceGone(effect.instance_id))
                case Grant():
                    self.granted.append(effect.model)
        return effects

    def serve(self, model: str) -> None:
        """A request for a model from its arrival to its end, its load included."""
        self.send(StepRequested(f"r{self.now_s}", "a", (model,)), 1.0)
        self.finish_loads()
        lease_ids = list(self.core._book.leases)
        for lease_id in lease_ids:
            self.send(LeaseReleased(lease_id, 1, 1.0), 1.0)

    def finish_loads(self) -> None:
        for instance_id, start in list(self.loading.items()):
            del self.loading[instance_id]
            self.send(InstanceReady(instance_id, 5.0, start.fit.slots), 5.0)

    def foreign(self, used: int, after_s: float = 1.0) -> None:
        self.send(InventoryChanged((DeviceView("gpu0", 100, used),)), after_s)


def test_what_made_way_for_another_program_comes_back_once_it_stays_away() -> None:
    machine = Machine(ModelSpec("m", demand=60))
    machine.serve("m")
    machine.foreign(70)
    assert machine.core.capacity(machine.now_s).models["m"].vram_bytes == 0, "it made way"
    machine.foreign(0)
    assert machine.loads == ["m"], "not into a wave that may come again"
    machine.send(Tick(), 10.0)
    assert machine.loads == ["m", "m"]


def test_a_killed_model_comes_back_without_being_asked_for() -> None:
    machine = Machine(ModelSpec("m", demand=60))
    machine.serve("m")
    instance = machine.core.capacity(machine.now_s).models["m"].instance_id
    assert instance is not None
    machine.send(InstanceFailed(instance, "killed"))
    machine.send(InstanceGone(instance), 1.0)
    assert machine.loads == ["m", "m"]


def test_what_was_unloaded_for_lack_of_use_stays_away() -> None:
    machine = Machine(ModelSpec("m", demand=60, idle_unload_s=30.0))
    machine.serve("m")
    machine.send(Tick(), 31.0)
    machine.send(Tick(), 100.0)
    assert machine.loads == ["m"]


def test_a_model_that_nobody_asked_for_is_not_loaded() -> None:
    machine = Machine(ModelSpec("m", demand=60), ModelSpec("n", demand=30))
    machine.serve("m")
    machine.send(Tick(), 10.0)
    assert machine.loads == ["m"]


def test_a_guess_that_gave_way_is_not_cut_again_on_the_other_card() -> None:
    """Started again where the wanted model now fits best, it was cut and started without end."""
    guess, wanted = ModelSpec("m", demand=60), ModelSpec("n", demand=10)
    machine = Machine(guess, wanted, cards=2)
    machine.serve("m")
    instance = machine.core.capacity(machine.now_s).models["m"].instance_id
    assert instance is not None
    machine.send(InstanceFailed(instance, "killed"))
    machine.send(InstanceGone(instance), 1.0)
    assert machine.loads == ["m", "m"]
    machine.send(ConfigChanged((guess, replace(wanted, preload=True))))
    assert sorted(machine.loads) == ["m", "m", "m", "n"]


def test_what_is_asked_for_and_fits_is_not_left_behind_those_who_wait_for_room() -> None:
    """For two more urgent models victims are sought at each event; a third had to wait for both
    beside free memory, for half a minute in the ordeal."""
    works = [ModelSpec("u", demand=90), ModelSpec("v", demand=50)]
    waits = [ModelSpec("x", demand=95), ModelSpec("y", demand=95)]
    machine = Machine(*works, *waits, ModelSpec("z", demand=40), cards=2)
    for model in ("u", "v"):
        machine.send(StepRequested(f"of {model}", "a", (model,)), 1.0)
        machine.finish_loads()
    for model in ("x", "y", "z"):
        machine.send(StepRequested(f"of {model}", "b", (model,)), 0.1)
    assert machine.loads == ["u", "v", "z"]


def test_a_guess_is_cut_short_when_a_request_needs_its_place() -> None:
    machine = Machine(ModelSpec("m", demand=60), ModelSpec("n", demand=70))
    machine.serve("m")
    instance = machine.core.capacity(machine.now_s).models["m"].instance_id
    assert instance is not None
    machine.send(InstanceFailed(instance, "killed"))
    machine.send(InstanceGone(instance), 1.0)
    assert machine.loads == ["m", "m"], "a guess is under way"
    machine.send(StepRequested("r", "b", ("n",)), 0.5)
    assert machine.loads == ["m", "m", "n"], "at once, not after the guess"


def test_a_guess_that_its_own_request_catches_up_with_serves_it() -> None:
    machine = Machine(ModelSpec("m", demand=60))
    machine.serve("m")
    instance = machine.core.capacity(machine.now_s).models["m"].instance_id
    assert instance is not None
    machine.send(InstanceFailed(instance, "killed"))
    machine.send(InstanceGone(instance), 1.0)
    machine.send(StepRequested("r", "a", ("m",)), 1.0)
    machine.finish_loads()
    assert machine.granted == ["m", "m"]
    assert machine.loads == ["m", "m"]


def test_a_guess_that_fails_is_not_tried_again_until_somebody_asks() -> None:
    machine = Machine(ModelSpec("m", demand=60))
    machine.serve("m")
    for _ in range(2):
        instance = machine.core.capacity(machine.now_s).models["m"].instance_id
        assert instance is not None
        machine.loading.clear()
        machine.send(InstanceFailed(instance, "no room after all", crashed=False))
        machine.send(InstanceGone(instance), 1.0)
        machine.send(Tick(), 5.0)
    assert machine.loads == ["m", "m"]
    machine.serve("m")
    assert machine.loads == ["m", "m", "m"]


def test_a_dead_process_of_ours_is_not_taken_for_another_programs_wave() -> None:
    hold = ForeignHold(calm_s=10.0)
    hold.observe("gpu0", 5, 0.0)
    hold.observe("gpu0", 65, 1.0)
    hold.returned("gpu0", 60, 2.0)
    hold.observe("gpu0", 5, 3.0)
    assert hold.held("gpu0", 3.0) == 5
    assert hold.held("gpu0", 14.0) == 5


def test_a_rebound_agents_old_model_drains_and_the_new_one_loads_before_it_asks() -> None:
    models = ModelSpec("m", demand=60), ModelSpec("n", demand=70)
    machine = Machine(*models)
    machine.send(ConfigChanged(models, (AgentSpec("a", ("m",)),)))
    machine.send(StepRequested("r", "a", ("m",)), 1.0)
    machine.finish_loads()
    machine.send(ConfigChanged(models, (AgentSpec("a", ("n",)),)), 1.0)
    assert machine.loads == ["m"], "what works is not cut short"
    (lease_id,) = machine.core._book.leases
    machine.send(LeaseReleased(lease_id, 1, 1.0), 1.0)
    assert machine.loads == ["m", "n"]


def test_who_stays_away_is_trusted_sooner_and_who_comes_back_is_waited_for_longer() -> None:
    hold = ForeignHold(calm_s=8.0)

    def wave(at_s: float) -> None:
        hold.observe("gpu0", 50, at_s)
        hold.observe("gpu0", 0, at_s + 1.0)

    wave(0.0)
    assert hold.held("gpu0", 8.9) == 50
    assert hold.held("gpu0", 9.0) == 0
    wave(100.0)
    assert hold.held("gpu0", 104.9) == 50
    assert hold.held("gpu0", 105.0) == 0
    wave(200.0)
    wave(202.0)
    assert hold.held("gpu0", 206.9) == 50, "two seconds would have done, had it not come back"
    assert hold.held("gpu0", 207.0) == 0
