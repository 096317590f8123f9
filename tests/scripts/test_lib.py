"""What the scripts share does what it says, each function run by a real bash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [
    *sorted((ROOT / "scripts").glob("*.sh")),
    ROOT / "scripts" / "check",
    ROOT / "scripts" / "lock",
    ROOT / ".ci" / "run",
]


def bash(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail; source scripts/lib.sh; {code}"],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def program(folder: Path, name: str, code: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/bash\n{code}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_parses_and_may_be_run(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert script.name == "lib.sh" or os.access(script, os.X_OK)


def test_continuous_integration_runs_the_test_script_and_nothing_else() -> None:
    lines = (ROOT / ".ci" / "run").read_text().split("\n")
    assert lines == ["#!/usr/bin/env bash", "exec ./scripts/test.sh", ""]


def test_a_failure_names_the_next_command() -> None:
    done = bash("fail 'no disk' 'df -h'")
    assert done.returncode == 1
    assert done.stderr == "error: no disk\n  try: df -h\n"


def test_a_quiet_command_is_shown_only_when_it_fails() -> None:
    done = bash("run_quietly working bash -c 'echo noise; exit 3' || echo code $?")
    assert "noise" in done.stderr
    assert done.stdout == "code 1\n"
    assert "noise" not in bash("run_quietly working echo noise").stderr


def test_progress_is_a_line_for_every_tenth_without_a_terminal() -> None:
    done = bash("for n in 0 3 9 10 14 25 100; do show_progress $n file; done")
    shown = [line.split()[0] for line in done.stderr.splitlines()]
    assert shown == ["0", "10", "25", "100"]


def test_a_user_without_root_is_told_the_one_line_to_run(tmp_path: Path) -> None:
    program(tmp_path / "bin", "id", "echo 1000")
    program(tmp_path / "bin", "apt-get", "echo must not run >&2; exit 9")
    done = bash("need_packages g++ python3-venv", PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "sudo apt-get install -y --no-install-recommends g++ python3-venv" in done.stderr
    assert "must not run" not in done.stderr


def test_root_gets_the_packages_installed(tmp_path: Path) -> None:
    program(tmp_path / "bin", "id", "echo 0")
    program(tmp_path / "bin", "apt-get", f'echo "$@" >>{tmp_path}/calls')
    done = bash("need_packages g++", PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().splitlines() == [
        "update",
        "install -y --no-install-recommends g++",
    ]


def test_an_old_python_is_refused_and_a_newer_one_beside_it_is_found(tmp_path: Path) -> None:
    for name in ("python3", "python3.14", "python3.13", "python3.12", "python3.11"):
        program(tmp_path / "bin", name, "exit 1")
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    done = bash("find_python", PATH=path)
    assert done.returncode == 1
    assert "Python 3.11 or later is needed" in done.stderr
    program(tmp_path / "bin", "python3.12", "exit 0")
    assert bash("find_python", PATH=path).stdout.strip() == f"{tmp_path}/bin/python3.12"


def test_wheels_built_with_other_flags_are_kept_apart(tmp_path: Path) -> None:
    plain = bash("wheel_folder python3", APPLIANCE_CACHE=str(tmp_path), CMAKE_ARGS="")
    cuda = bash("wheel_folder python3", APPLIANCE_CACHE=str(tmp_path), CMAKE_ARGS="-DGGML_CUDA=on")
    assert plain.stdout.startswith(f"{tmp_path}/wheels/llama-cpp-python-0.3.36-cpython-")
    assert plain.stdout != cuda.stdout
    again = bash("wheel_folder python3", APPLIANCE_CACHE=str(tmp_path), CMAKE_ARGS="")
    assert plain.stdout == again.stdout


def test_a_step_is_done_again_only_when_its_inputs_change(tmp_path: Path) -> None:
    code = f"stamp {tmp_path} lock abc; is_stamped {tmp_path} lock abc && echo same; "
    assert bash(code + f"is_stamped {tmp_path} lock abd || echo other").stdout == "same\nother\n"


def second_try(folder: Path, tests: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    (folder / "test_some.py").write_text(
        "from pathlib import Path\n"
        "def is_first(name):\n"
        "    seen = Path(__file__).with_name(name)\n"
        "    first = not seen.exists()\n"
        "    seen.touch()\n"
        "    return first\n"
        "def test_good(): is_first('good')\n" + tests
    )
    words = " ".join(arguments)
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # as fast as pytest itself
    return bash(
        f"test_with_second_try {sys.executable} {folder} --rootdir={folder} {words}", **alone
    )


FLAKY = "def test_flaky(): assert not is_first('flaky')\n"
BAD = "def test_bad(): assert 0\n"


def test_a_test_that_passes_at_the_second_try_is_named_and_is_no_failure(tmp_path: Path) -> None:
    done = second_try(tmp_path / "a", FLAKY)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "UNSTEADY: test_some.py::test_flaky"
    assert "1 passed" in done.stdout.splitlines()[-2], "alone, without the one that was good"


def test_a_test_that_fails_twice_fails_the_run(tmp_path: Path) -> None:
    done = second_try(tmp_path / "a", FLAKY + BAD)
    assert done.returncode == 1
    assert "UNSTEADY" not in done.stdout


def test_the_whole_suite_runs_in_two_halves_and_a_failure_of_either_counts(
    tmp_path: Path,
) -> None:
    def halves(first: str, second: str) -> subprocess.CompletedProcess[str]:
        for name, code in (("slow", first), ("quick", second)):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"test_{name}.py").write_text(code)
            (tmp_path / name / "seen").unlink(missing_ok=True)
        return bash(
            f"cd {tmp_path}; FIRST_HALF=(slow); has_gpu() {{ false; }}; "
            f"test_with_second_try {sys.executable}",
            PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
        )

    good, bad = "def test_it(): pass\n", "def test_it(): assert 0\n"
    flaky = (
        "from pathlib import Path\n"
        "def test_it():\n"
        "    seen = Path(__file__).with_name('seen')\n"
        "    known = seen.exists()\n"
        "    seen.touch()\n"
        "    assert known\n"
    )
    both = halves(good, good)
    assert (both.returncode, both.stdout.count("1 passed")) == (0, 2)
    assert halves(bad, good).returncode == 1
    assert halves(good, bad).returncode == 1
    unsteady = halves(flaky, flaky)
    assert unsteady.returncode == 0
    named = {line for line in unsteady.stdout.splitlines() if line.startswith("UNSTEADY")}
    assert named == {
        "UNSTEADY: slow/test_slow.py::test_it", "UNSTEADY: quick/test_quick.py::test_it"
    }  # fmt: skip
    assert halves("import nothing_of_this_name\n", good).returncode == 2


@pytest.mark.parametrize("stop", ["-x", "--maxfail=1"])
def test_a_run_that_stops_at_a_failure_is_not_repeated(tmp_path: Path, stop: str) -> None:
    assert second_try(tmp_path / "a", FLAKY, stop).returncode == 1


def test_many_failures_and_files_that_cannot_be_read_are_not_repeated(tmp_path: Path) -> None:
    four = "".join(FLAKY.replace("flaky", f"flaky{n}") for n in range(4))
    assert second_try(tmp_path / "a", four).returncode == 1
    done = second_try(tmp_path / "b", "import nothing_of_this_name\n")
    assert done.returncode == 2
    assert "Once more" not in done.stderr


def test_good_tests_are_run_once_and_a_choice_of_none_is_told(tmp_path: Path) -> None:
    done = second_try(tmp_path / "a", "")
    assert done.returncode == 0
    assert "Once more" not in done.stderr
    assert second_try(tmp_path / "a", "", "-k", "nothing").returncode == 5


def test_an_answer_is_shown_as_it_comes_and_a_failed_turn_is_a_failure(tmp_path: Path) -> None:
    def show(*lines: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["python3", "scripts/show_answer.py", str(tmp_path / "turn")],
            cwd=ROOT,
            input="\n".join(lines),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    good = show(
        '{"type": "progress", "stage": "loading", "done": 1, "total": 2}',
        '{"type": "delta", "kind": "text", "text": "Hel"}',
        '{"type": "delta", "kind": "text", "text": "lo"}',
        '{"type": "turn.completed", "turn": "turn_1", "text": "Hello"}',
    )
    assert (good.returncode, good.stdout) == (0, "Hello\n")
    assert "loading the model" in good.stderr
    assert (tmp_path / "turn").read_text() == "turn_1"
    bad = show('{"type": "turn.failed", "turn": "turn_2", "error": {"message": "no room"}}')
    assert bad.returncode == 1
    assert "no room" in bad.stderr
