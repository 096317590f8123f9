"""The next model is loaded while another works, where hand-overs say so, and at nobody's cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.scheduler.core import Core
from appliance.scheduler.handover import Expected, Handovers
from appliance.scheduler.placing import BestFit
from appliance.scheduler.policy import Policy
from appliance.scheduler.tally import Tally
from appliance.scheduler.telling import tell
from appliance.scheduler.values import (
    ConfigChanged,
    DeviceView,
    Effect,
    Event,
    Grant,
    InstanceGone,
    InstanceReady,
    InventoryChanged,
    LeaseReleased,
    ModelSpec,
    Record,
    StartInstance,
    StepRequested,
    StopInstance,
)
from tests.scheduler.teams import TEAMS, play, team


def _one(table: Handovers, model: str, now_s: float) -> Expected:
    (expected,) = table.expected((model,), now_s)
    return expected


def _handed_over(times: int, table: Handovers) -> float:
    """Agent a takes one step, b is asked two seconds later, and a again a hundred after that."""
    now_s = 0.0
    for _ in range(times):
        table.ended("a", 5.0, now_s)
        table.asked("b", "m", now_s + 2.0)
        table.asked("a", "n", now_s + 102.0)
        now_s += 107.0
    return now_s


def test_who_always_follows_is_expected_and_soon() -> None:
    table = Handovers()
    now_s = _handed_over(9, table)
    table.ended("a", 5.0, now_s)
    expected = _one(table, "m", now_s)
    assert expected.agent == "a"
    assert expected.chance == pytest.approx(0.9), "nine of nine, and one that is always doubted"
    assert 1.0 <= expected.in_s <= 3.0


def test_while_the_agent_works_its_followers_are_expected_after_the_step() -> None:
    table = Handovers()
    now_s = _handed_over(9, table)
    table.begun("a", 1.0, now_s)
    assert _one(table, "m", now_s).in_s >= 6.0, "its steps take five seconds, then two"
    assert _one(table, "m", now_s + 4.0).in_s <= 4.0


def test_a_step_that_came_to_nothing_is_followed_by_nobody() -> None:
    table = Handovers()
    now_s = _handed_over(9, table)
    table.begun("a", 1.0, now_s)
    table.broke_off("a")
    assert not list(table.expected(("m",), now_s))


def test_who_was_asked_already_is_not_expected_again() -> None:
    table = Handovers()
    now_s = _handed_over(9, table)
    table.ended("a", 5.0, now_s)
    table.asked("b", "m", now_s + 1.0)
    assert not [e for e in table.expected(("m",), now_s + 2.0) if e.chance]


def test_silence_beyond_the_usual_time_ends_the_expectation() -> None:
    table = Handovers()
    now_s = _handed_over(9, table)
    table.ended("a", 5.0, now_s)
    assert all(e.chance < 0.1 for e in table.expected(("m",), now_s + 30.0))


def test_habits_that_changed_are_forgotten() -> None:
    table = Handovers()
    now_s = _handed_over(200, table)
    for _ in range(200):
        table.ended("a", 5.0, now_s)
        table.asked("c", "k", now_s + 2.0)
        table.asked("a", "n", now_s + 102.0)
        now_s += 107.0
    table.ended("a", 5.0, now_s)
    assert _one(table, "k", now_s).chance > 0.9
    assert all(e.chance < 0.05 for e in table.expected(("m",), now_s))


def test_a_model_that_left_the_configuration_is_not_expected() -> None:
    table = Handovers()
    now_s = _handed_over(9, table)
    table.ended("a", 5.0, now_s)
    table.forget("m")
    assert not list(table.expected(("m",), now_s))


MODELS = tuple(ModelSpec(m, 1, demand=50, load_s=10.0) for m in ("plan", "build", "rare"))


class Office:
    """One card for two models: a plans on *plan*, b builds on *build*, and somebody once asked for
    *rare*. Everything is done at once but the loads, which are finished by hand."""

    def __init__(self, policy: Policy | None = None, *, stops_at_once: bool = True) -> None:
        self.core, self.now_s = Core(BestFit(), policy), 0.0
        self.stops_at_once, self.stopping = stops_at_once, list[str]()
        self.loading: dict[str, StartInstance] = {}
        self.leases: dict[str, str] = {}
        self.granted: list[str] = []
        self.loads: list[str] = []
        self.records: list[Record] = []
        self.send(InventoryChanged((DeviceView("gpu0", 100),)))
        self.send(ConfigChanged(MODELS))

    def send(self, event: Event, after_s: float = 0.0) -> None:
        self.now_s += after_s
        for effect in self.core.handle(event, self.now_s):
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case StartInstance():
                self.loads.append(effect.spec.name)
                self.loading[effect.instance_id] = effect
            case StopInstance():
                self.loading.pop(effect.instance_id, None)
                self.stopping.append(effect.instance_id)
                if self.stops_at_once:
                    self.finish_stops()
            case Grant():
                self.granted.append(effect.model)
                self.leases[effect.model] = effect.lease_id
            case Record():
                self.records.append(effect)
            case _:
                pass

    def finish_stops(self) -> None:
        while self.stopping:
            self.send(InstanceGone(self.stopping.pop()))

    def ask(self, agent: str, model: str, after_s: float = 0.0) -> None:
        self.send(StepRequested(f"r{self.now_s} {agent}", agent, (model,)), after_s)

    def finish_loads(self) -> None:
        for instance_id, start in list(self.loading.items()):
            del self.loading[instance_id]
            self.send(InstanceReady(instance_id, 10.0, start.fit.slots), 10.0)

    def end(self, model: str, after_s: float = 8.0) -> None:
        self.send(LeaseReleased(self.leases.pop(model), 1, after_s), after_s)

    def serve(self, agent: str, model: str, after_s: float = 1.0) -> None:
        self.ask(agent, model, after_s)
        self.finish_stops()
        self.finish_loads()
        self.end(model)

    def learnt(self, models: tuple[ModelSpec, ...] = MODELS) -> Office:
        """b has followed a so often that nobody would be surprised, *rare* has just taken the place
        of *build*, and a plans again: it is at work."""
        for _ in range(12):
            self.serve("a", "plan", 60.0)
            self.serve("b", "build")
        self.serve("c", "rare", 30.0)
        self.serve("a", "plan", 30.0)
        self.send(ConfigChanged(models))
        self.loads.clear()
        self.ask("a", "plan", 900.0)
        return self

    def decisions(self, kind: str) -> list[Record]:
        return [record for record in self.records if record.kind == kind]


def test_who_follows_is_loaded_while_the_one_before_still_works() -> None:
    office = Office().learnt()
    assert office.loads == ["build"]
    office.finish_loads()
    office.end("plan", 1.0)
    office.ask("b", "build", 1.0)
    assert office.granted[-1] == "build", "at once"
    assert office.loads == ["build"]


def test_nobody_makes_way_where_the_policy_has_no_preloads() -> None:
    assert not Office(Policy(preloads=False)).learnt().loads


def test_what_is_pinned_or_to_stay_loaded_makes_no_way() -> None:
    for kept in (replace(MODELS[2], pinned=True), replace(MODELS[2], preload=True)):
        assert not Office().learnt((*MODELS[:2], kept)).loads


def test_what_works_makes_no_way() -> None:
    office = Office()
    for _ in range(12):
        office.serve("a", "plan", 60.0)
        office.serve("b", "build")
    office.ask("c", "rare", 30.0)
    office.finish_loads()
    office.loads.clear()
    office.ask("a", "plan", 0.0)
    office.finish_loads()
    assert "rare" in office.leases
    assert "build" not in office.loads


def test_a_preload_is_given_up_for_a_request() -> None:
    office = Office().learnt()
    office.ask("c", "rare", 1.0)
    assert office.loads == ["build", "rare"], "at once, not after the preload"
    office.finish_loads()
    assert office.granted[-1] == "rare"


def test_a_request_takes_the_bytes_that_were_to_be_a_preloads() -> None:
    office = Office(stops_at_once=False).learnt()
    assert not office.loads, "the bytes of what made way are not back yet"
    office.ask("c", "rare", 1.0)
    office.finish_stops()
    assert office.loads == ["rare"]


def test_the_bytes_are_used_for_the_one_they_were_given_up_for() -> None:
    """Also where the one that left has the better chance, only later: it would come right back."""
    office = Office(stops_at_once=False).learnt()
    table = office.core._book.handovers
    for _ in range(40):
        table.ended("a", 8.0, office.now_s)
        table.asked("b", "build", office.now_s + 1.0)
        table.asked("c", "rare", office.now_s + 400.0)
        table.asked("a", "plan", office.now_s + 401.0)
    table.begun("a", 8.0, office.now_s)
    office.finish_stops()
    assert office.loads == ["build"]


def test_the_decision_is_a_record_with_its_numbers() -> None:
    office = Office().learnt()
    (made,) = office.decisions("preload")
    assert made.subject == "build"
    assert made.numbers["after_agent"] == "a"
    saved_s, lost_s = made.numbers["saved_s"], made.numbers["lost_s"]
    assert isinstance(saved_s, float)
    assert isinstance(lost_s, float)
    assert saved_s > 1.5 * lost_s
    told = tell("preload", "build", made.numbers)
    assert told.startswith("build is to be loaded ahead, into the place of rare")
    assert "behind agent a" in told
    (left,) = office.decisions("make_way")
    assert tell("make_way", "rare", left.numbers).startswith("rare makes way for build")


def test_teams_wait_no_longer_than_without() -> None:
    """All kinds of teams together; what a single one meets is chance."""
    waits_s = {}
    for preloads in (False, True):
        played = [
            play(*team(kind, 1), places=4, steps=400, policy=Policy(preloads=preloads))
            for kind in TEAMS
        ]
        waits_s[preloads] = sum(sum(one.waits_s) for one in played)
    assert waits_s[True] <= 1.05 * waits_s[False]


def test_preloads_that_deceive_are_believed_less() -> None:
    tally = Tally()
    for n in range(20):
        tally.began("m", 10.0, ("v",), 5.0, 1.0, n * 100.0)
        tally.asked("v", 10.0, n * 100.0 + 50.0, is_absent=True)
        tally.asked("m", 10.0, n * 100.0 + 60.0, is_absent=True)
    assert tally.saves < 0.5
    assert tally.costs > 2.0


def test_preloads_that_keep_their_promise_are_believed() -> None:
    tally = Tally()
    for n in range(10):
        tally.began("m", 10.0, ("v",), 5.0, 1.0, n * 100.0)
        tally.asked("m", 10.0, n * 100.0 + 5.0, is_absent=False)
        tally.asked("v", 10.0, n * 100.0 + 50.0, is_absent=True)
    assert tally.saves > 0.95
    assert tally.costs == 1.0, "who leaves for one that is used would have left for it anyway"


def test_what_made_way_for_a_preload_that_is_tried_again_is_still_looked_for() -> None:
    tally = Tally()
    for n in range(20):
        tally.began("m", 10.0, ("v",), 5.0, 1.0, n * 100.0)
        tally.began("m", 10.0, (), 5.0, 0.0, n * 100.0 + 20.0)
        tally.asked("v", 10.0, n * 100.0 + 50.0, is_absent=True)
    assert tally.costs > 2.0
