"""The unit under a real systemd: it comes up hardened, is watched, reloads, stops, and stays down
with a broken configuration. No virtual machine: systemd is pid 1 of namespaces that end with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
APPLIANCE = Path(sys.prefix) / "bin" / "appliance"
LAB_TIMEOUT_S = 120

PROBE = """
export HOME=/
until systemctl is-active -q appliance || systemctl is-failed -q appliance; do sleep 0.2; done
show() {{ echo "$1 $(systemctl show appliance --value -p "$2" | tr '\\n' ' ')"; }}
show started ActiveState
pid=$(systemctl show appliance --value -p MainPID)
echo "rights $(grep -E '^(NoNewPrivs|CapBnd):' /proc/$pid/status | tr -s '\\t\\n' '  ')"
{appliance} status --json >/dev/null && echo "status $?"
systemctl reload appliance && show reloaded ActiveState
kill -STOP "$pid"
until [ "$(systemctl show appliance --value -p NRestarts)" = 1 ]; do sleep 0.2; done
until systemctl is-active -q appliance; do sleep 0.2; done
show watchdog NRestarts
systemctl stop appliance && show stopped Result
echo '[gpu' >>/etc/appliance/config.toml
systemctl start appliance
show broken ExecMainStatus
show broken_restarts NRestarts
echo done
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces for systemd need root"),
    pytest.mark.skipif(not Path("/lib/systemd/systemd").exists(), reason="no systemd here"),
    pytest.mark.skipif(not APPLIANCE.exists(), reason="the package is not installed here"),
    pytest.mark.skipif(
        shutil.which("unshare") is None or shutil.which("ip") is None,
        reason="unshare or ip is not installed",
    ),
    pytest.mark.skipif(
        sys.prefix.startswith(("/root", "/home", "/tmp")),
        reason="the unit hides /root, /home and /tmp, where this environment is",
    ),
]


def unit_for_here(folder: Path) -> None:
    """The unit, running this environment's program as a user every machine has."""
    text = (ROOT / "systemd" / "appliance.service").read_text()
    text = text.replace("/opt/appliance/venv/bin/appliance", str(APPLIANCE))
    text = text.replace("User=appliance", "User=nobody").replace("Group=appliance", "Group=nogroup")
    text = text.replace("WatchdogSec=30", "WatchdogSec=3")
    (folder / "appliance.service").write_text(text)
    drop_in = folder / "appliance.service.d" / "lab.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Unit]\nDefaultDependencies=no\nWants=\nAfter=\n")


def probe(tmp_path: Path) -> dict[str, str]:
    """What the probe said, by its first word."""
    units = tmp_path / "units"
    units.mkdir()
    unit_for_here(units)
    script = tmp_path / "probe.sh"
    script.write_text(PROBE.format(appliance=APPLIANCE))
    output = tmp_path / "output"
    lab = ["unshare", "-mpfuinC", "--mount-proc", "--kill-child=SIGKILL"]
    lab += [str(ROOT / "tests" / "systemd" / "lab.sh"), str(units), str(script), str(output)]
    log = (tmp_path / "systemd.log").open("w+")
    child = subprocess.Popen(lab, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        for _ in range(LAB_TIMEOUT_S * 5):
            if output.exists() and "done\n" in output.read_text():
                break
            try:
                child.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
            break
    finally:
        child.kill()
        child.wait()
    said = output.read_text() if output.exists() else ""
    log.seek(0)
    assert "done\n" in said, f"{said}\n{log.read()}"
    return dict(line.split(" ", 1) for line in said.splitlines() if " " in line)


def test_the_unit_lives_as_promised_under_a_real_systemd(tmp_path: Path) -> None:
    said = probe(tmp_path)
    assert said["started"].strip() == "active"
    assert said["rights"].split() == ["CapBnd:", "0" * 16, "NoNewPrivs:", "1"]
    assert said["status"].strip() == "0"
    assert said["reloaded"].strip() == "active"
    assert said["watchdog"].strip() == "1"
    assert said["stopped"].strip() == "success"
    assert said["broken"].strip() == "2"
    assert said["broken_restarts"].strip() == "0"
