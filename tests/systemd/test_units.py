"""The units parse without a word, are as hardened as promised, and hold no secret."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
DROP_INS = ("air-gap.conf", "cloud-key.conf", "tools-bubblewrap.conf")

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def unit_with(folder: Path, *drop_ins: str) -> Path:
    """The unit as it would be installed, but for a program that exists on every machine."""
    unit = folder / "appliance.service"
    text = (UNITS / "appliance.service").read_text()
    unit.write_text(text.replace("/opt/appliance/venv/bin/appliance", "/bin/true"))
    for name in drop_ins:
        target = folder / "appliance.service.d" / name
        target.parent.mkdir(exist_ok=True)
        target.write_text((UNITS / name).read_text())
    return unit


def analyze(*arguments: str) -> str:
    done = subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout + done.stderr


def exposure(unit: Path) -> float:
    output = analyze("security", "--offline=yes", "--no-pager", str(unit))
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", output)
    assert found, output
    return float(found[1])


@pytest.mark.parametrize("drop_ins", [(), *((name,) for name in DROP_INS)])
def test_verify_has_nothing_to_say(tmp_path: Path, drop_ins: tuple[str, ...]) -> None:
    assert analyze("verify", str(unit_with(tmp_path, *drop_ins))) == ""


@pytest.mark.parametrize(
    ("drop_ins", "most"),
    [((), 1.5), (("air-gap.conf",), 1.3), (("cloud-key.conf",), 1.5)],
)
def test_exposure_is_as_promised(tmp_path: Path, drop_ins: tuple[str, ...], most: float) -> None:
    assert exposure(unit_with(tmp_path, *drop_ins)) <= most


def keys(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if match := re.match(r"^(\w+)=(.*)$", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def test_what_would_break_roles_or_hide_the_gpus_is_not_set() -> None:
    for name in ("appliance.service", *DROP_INS):
        assert not {"PrivateUsers", "PrivateDevices", "ProcSubset"} & keys(name).keys()


def test_the_sandbox_of_tools_is_not_filtered_away() -> None:
    allowed = " ".join(keys("appliance.service")["SystemCallFilter"]).split()
    assert {"landlock_create_ruleset", "landlock_restrict_self", "seccomp"} <= set(allowed)


def test_a_runner_outlives_the_daemon_and_a_broken_configuration_is_not_retried() -> None:
    unit = keys("appliance.service")
    assert unit["Type"] == ["notify"]
    assert unit["KillMode"] == ["process"]
    assert "2" in unit["RestartPreventExitStatus"][0].split()


def test_no_unit_holds_a_secret() -> None:
    for name in ("appliance.service", "appliance-user.service", *DROP_INS):
        for value in keys(name).get("Environment", []):
            assert not re.search(r"KEY|TOKEN|SECRET|PASSWORD", value, re.IGNORECASE)


def test_the_folder_is_no_python_package_as_its_name_belongs_to_one() -> None:
    assert not list(UNITS.glob("*.py"))
