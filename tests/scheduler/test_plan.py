"""`appliance plan`: real headers, real placement, the scheduler's own core; no daemon."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.cli.commands import app
from appliance.errors import BadRequest
from appliance.gpu.types import GIB, HOST, Device, FixedFootprint, Inventory
from appliance.gpu.wants import PlacementPolicy, Want
from appliance.scheduler.plan import cards_named, fit_together, outlook
from appliance.scheduler.replay import TraceRow
from appliance.scheduler.values import ModelSpec

POLICY = PlacementPolicy(reserve_bytes=GIB // 2)


def machine(gpus: str) -> Inventory:
    host = Device(HOST, -1, "host RAM", 8 * GIB, 0, 8 * GIB)
    return Inventory((*cards_named(gpus), host), 0.0)


def model(name: str, gib: int, pin: tuple[str, ...] = ()) -> ModelSpec:
    want = Want(name, FixedFootprint(gib * GIB), 4096, pin=pin, allow_host=False)
    return ModelSpec(name, 1, demand=want)


def test_cards_are_read_from_words_and_nonsense_is_refused() -> None:
    cards = cards_named("2x24GiB, 80GB")
    assert [card.total_bytes for card in cards] == [24 * GIB, 24 * GIB, 80 * 10**9]
    for text in ("", "two", "2x", "0GiB", "99x1GiB"):
        with pytest.raises(BadRequest):
            cards_named(text)


def test_models_that_fit_together_are_placed_and_the_other_is_told_why() -> None:
    specs = [model("a", 20), model("b", 20), model("c", 40)]
    found = fit_together(specs, machine("2x24GiB"), POLICY)
    assert {placement.model for placement in found.resident} == {"a", "b"}
    assert [refusal.model for refusal in found.refused] == ["c"]
    assert "40.00 GiB" in found.refused[0].reason


def test_what_fits_alone_takes_turns_with_those_that_fit_together() -> None:
    specs = [model("a", 20), replace(model("b", 20), pinned=True), model("c", 18)]
    found = fit_together(specs, machine("2x24GiB"), POLICY)
    assert {placement.model for placement in found.resident} >= {"b"}
    assert len(found.in_turn) == 1, "the pinned one holds a card"
    assert not found.refused


def test_what_does_not_fit_beside_the_pinned_is_told_what_they_leave() -> None:
    specs = [replace(model("kept", 20), pinned=True), model("b", 10)]
    found = fit_together(specs, machine("24GiB"), POLICY)
    assert [refusal.model for refusal in found.refused] == ["b"]
    assert "; 3.50 GiB can be promised" in found.refused[0].reason


def test_a_card_pinned_by_its_index_is_found() -> None:
    found = fit_together([model("a", 4, pin=("1",))], machine("2x24GiB"), POLICY)
    assert found.resident[0].cards == ("gpu1",)


def test_a_trace_of_two_models_that_do_not_fit_together_swaps_and_waits_for_loads() -> None:
    rows = [TraceRow(n * 60.0, "ab"[n % 2], "ab"[n % 2], 2.0) for n in range(20)]
    specs = [model("a", 20), model("b", 20)]
    one = outlook(rows, specs, machine("24GiB"), POLICY, bytes_per_s=2.0 * GIB)
    two = outlook(rows, specs, machine("2x24GiB"), POLICY, bytes_per_s=2.0 * GIB)
    assert (one.all.loads, one.all.swaps) == (20, 19)
    assert one.all.wait_p50_s == pytest.approx(10.0, abs=0.1), "20 GiB at 2 GiB/s"
    assert (two.all.loads, two.all.swaps, two.all.wait_p50_s) == (2, 0, 0.0)
    assert [(of.requests, of.loads, of.swaps) for of in one.by_model.values()] == [
        (10, 10, 10),
        (10, 10, 9),
    ], "the last one stays"


def test_a_trace_of_a_model_that_is_not_planned_is_refused_by_name() -> None:
    with pytest.raises(BadRequest, match="ghost"):
        outlook([TraceRow(0.0, "a", "ghost", 1.0)], [model("a", 1)], machine("24GiB"), POLICY)


CONFIG = """
[models.one]
engine = "scripted"
script = "one.json"
vram_bytes = "10GiB"

[models.absent]
engine = "llamacpp"
file = "absent.gguf"

[agents.worker]
models = ["one"]
"""


def test_the_command_plans_leaves_out_an_absent_file_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG)
    trace = tmp_path / "trace.csv"
    trace.write_text("time_s,agent,model,duration_s\n0,worker,one,1\n30,worker,one,1\n")
    base = ["--home", str(tmp_path), "plan", "--gpus", "1x24GiB", "--trace", str(trace)]
    ran = CliRunner().invoke(app, [*base, "--json"])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert [row["model"] for row in found["models"]] == ["one"]
    assert "absent.gguf" in found["missing"]["absent"]
    assert (found["trace"]["requests"], found["trace"]["loads"]) == (2, 1)
    text = CliRunner().invoke(app, base, env={"COLUMNS": "80"})
    assert text.exit_code == 0
    assert max(map(len, text.stdout.splitlines())) <= 80
    assert "absent is left out" in text.stdout


def test_the_command_refuses_a_model_that_the_configuration_lacks(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG)
    ran = CliRunner().invoke(app, ["--home", str(tmp_path), "plan", "--models", "nobody"])
    assert ran.exit_code == 2
