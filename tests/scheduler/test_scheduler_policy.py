"""What the operator may set of the scheduler's patience, and may change while it works."""

from __future__ import annotations

import pytest

from appliance.scheduler.core import Core
from appliance.scheduler.placing import BestFit
from appliance.scheduler.policy import Policy
from appliance.scheduler.values import (
    ConfigChanged,
    DeviceView,
    InstanceReady,
    InventoryChanged,
    LeaseReleased,
    ModelSpec,
    Refuse,
    StartInstance,
    StepRequested,
    StopInstance,
)


def with_model_at_work(model: ModelSpec) -> Core:
    """One card of 100 bytes, and a lease on the model."""
    core = Core(BestFit())
    core.handle(InventoryChanged((DeviceView("gpu0", 100),)), 0.0)
    core.handle(ConfigChanged((model,)), 0.0)
    effects = core.handle(StepRequested("first", "a", (model.name,)), 0.0)
    start = next(effect for effect in effects if isinstance(effect, StartInstance))
    core.handle(InstanceReady(start.instance_id, 1.0, 1), 1.0)
    return core


@pytest.mark.parametrize(("yields", "unloaded"), [(True, 1), (False, 0)])
def test_idle_models_make_way_for_other_programs_where_the_operator_wants_it(
    yields: bool, unloaded: int
) -> None:
    model = ModelSpec("m", 1, demand=80)
    core = with_model_at_work(model)
    core.handle(ConfigChanged((model,), policy=Policy(yields_to_foreign=yields)), 1.0)
    (lease_id,) = core._book.leases
    core.handle(LeaseReleased(lease_id), 2.0)
    effects = core.handle(InventoryChanged((DeviceView("gpu0", 100, foreign_bytes=60),)), 3.0)
    assert len([e for e in effects if isinstance(e, StopInstance)]) == unloaded


def test_the_length_of_the_queue_is_what_the_configuration_last_said() -> None:
    model = ModelSpec("m", 1, demand=80)
    core = with_model_at_work(model)
    core.handle(ConfigChanged((model,), policy=Policy(max_waiting=2)), 1.0)

    def refused(request_id: str) -> list[str]:
        effects = core.handle(StepRequested(request_id, "a", ("m",)), 1.0)
        return [effect.request_id for effect in effects if isinstance(effect, Refuse)]

    assert [refused(each) for each in ("r1", "r2", "r3")] == [[], [], ["r3"]]
    core.handle(ConfigChanged((model,)), 1.0)
    assert refused("r4") == ["r4"], "a change of other things keeps it"
    core.handle(ConfigChanged((model,), policy=Policy(max_waiting=3)), 1.0)
    assert [refused(each) for each in ("r5", "r6")] == [[], ["r6"]]
