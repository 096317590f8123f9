"""The oracle: the library's own answer, remembered; the formula where there is none."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from appliance.gpu.calibration import Calibration, load_key
from appliance.gpu.estimate import estimate
from appliance.gpu.oracle import Oracle, merge
from appliance.gpu.shape import read_shape
from appliance.gpu.types import HOST, MIB, PlanParams, Term
from tests.gpu.sketches.catalogue import SKETCHES
from tests.gpu.sparse import write


def oracle(tmp_path: Path, **options: object) -> Oracle:
    return Oracle(tmp_path / "cache", library="llama-cpp-python 0.3.36", **options)  # type: ignore[arg-type]


async def test_the_library_says_its_compute_buffer_and_is_asked_once(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    path = write(SKETCHES["rwkv6-1.6b"](), tmp_path)
    shape, plan = read_shape(path), PlanParams(4096, n_batch=2048)
    asked = oracle(tmp_path)
    first = await asked.estimate(path, shape, plan)
    assert first.basis == "dry_run"
    assert abs(first.terms[HOST][Term.COMPUTE] - 57 * MIB) < MIB
    mute = oracle(tmp_path, python="/nonexistent/python")
    assert await mute.estimate(path, shape, plan) == first, "the second answer comes from disk"


async def test_parameters_library_and_content_each_make_a_question_of_their_own(
    tmp_path: Path,
) -> None:
    path = write(SKETCHES["gemma-3-270m"](), tmp_path)
    shape = read_shape(path)
    asked = oracle(tmp_path)
    other = Oracle(tmp_path / "cache", library="another")
    keys = {
        asked.key(shape, PlanParams(4096)),
        asked.key(shape, PlanParams(8192)),
        other.key(shape, PlanParams(4096)),
    }
    assert len(keys) == 3
    assert asked.key(shape, PlanParams(4096)) in keys


async def test_a_child_that_dies_or_hangs_leaves_the_formula(tmp_path: Path) -> None:
    path = write(SKETCHES["gemma-3-270m"](), tmp_path)
    shape, plan = read_shape(path), PlanParams(4096)
    dying = tmp_path / "dying"
    dying.write_text("#!/bin/sh\nkill -ABRT $$\n")
    dying.chmod(0o755)
    assert await oracle(tmp_path, python=str(dying)).estimate(path, shape, plan) == estimate(
        shape, plan
    )
    hanging = tmp_path / "hanging"
    hanging.write_text("#!/bin/sh\nsleep 60\n")
    hanging.chmod(0o755)
    began = time.monotonic()
    slow = oracle(tmp_path, python=str(hanging), limit_s=0.2)
    assert (await slow.estimate(path, shape, plan)).basis == "formula"
    assert time.monotonic() - began < 30, "it did not wait for the child to end by itself"


async def test_a_broken_file_is_no_answer(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    path = write(SKETCHES["gemma-3-270m"](), tmp_path)
    shape = read_shape(path)
    path.write_bytes(b"GGUF")
    answer = await oracle(tmp_path, python=sys.executable).estimate(path, shape, PlanParams(4096))
    assert answer.basis == "formula"


def test_buffers_are_assigned_to_the_plans_cards(tmp_path: Path) -> None:
    shape = read_shape(write(SKETCHES["gemma-3-270m"](), tmp_path))
    plan = PlanParams(4096, gpu_layers=99, devices=("GPU-b", "GPU-a"), tensor_split=(1.0, 1.0))
    answer = {
        "compute": {"CUDA0": 10 * MIB, "CUDA1": 20 * MIB, "CUDA_Host": 3 * MIB},
        "kv_bytes": 0,
        "state_bytes": 0,
    }
    merged = merge(shape, plan, estimate(shape, plan), answer)
    assert merged.terms["GPU-b"][Term.COMPUTE] == 10 * MIB
    assert merged.terms["GPU-a"][Term.COMPUTE] == 20 * MIB
    assert merged.terms[HOST][Term.COMPUTE] == 3 * MIB


async def test_what_was_measured_for_this_load_wins(tmp_path: Path) -> None:
    shape = read_shape(write(SKETCHES["gemma-3-270m"](), tmp_path))
    plan = PlanParams(4096, gpu_layers=99, devices=("GPU-a",))
    key = load_key(shape, plan)
    base = estimate(shape, plan)
    known = Calibration().after_load(key, base, {"GPU-a": base.bytes_on("GPU-a") + 900 * MIB})
    asked = oracle(tmp_path, calibration=known, python="/bin/false")
    answer = await asked.estimate(tmp_path / "gemma-3-270m.gguf", shape, plan)
    assert answer.basis == "measured"
    assert answer.bytes_on("GPU-a") >= base.bytes_on("GPU-a") + 900 * MIB
