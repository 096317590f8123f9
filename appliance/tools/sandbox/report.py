"""Which sandbox this machine gives, found by trying it, and why not a better one."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from appliance.tools.sandbox import landlock, limits
from appliance.tools.sandbox.plan import Cage, bubblewrap_argv

PROBE_TIMEOUT_S = 10.0
NONE = "none-i-accept-the-risk"


@dataclass(frozen=True, slots=True)
class SandboxReport:
    """What a tool's process will run in. `reasons` are sentences for `appliance doctor`."""

    mode: str
    """bubblewrap, landlock, none, or unavailable."""
    bwrap: str
    disables_userns: bool
    landlock_abi: int
    cgroup: str
    """Where cgroups of calls are made; empty when only rlimits bound them."""
    reasons: tuple[str, ...]

    @property
    def can_run_programs(self) -> bool:
        return self.mode != "unavailable"


async def probe(wanted: str = "auto") -> SandboxReport:
    """Try what the config asks for: auto, bubblewrap, landlock or none-i-accept-the-risk."""
    return await asyncio.to_thread(_probe, wanted)


def _probe(wanted: str) -> SandboxReport:
    unified, controllers = limits.homes()
    cgroup = unified or ", ".join(controllers.values())
    abi = landlock.abi()
    reasons: list[str] = []
    mode, bwrap, disables = "unavailable", "", False
    if wanted == NONE:
        mode = "none"
        reasons.append("config.toml says so: tools run with the daemon's own rights")
    elif wanted in ("auto", "bubblewrap"):
        bwrap, disables, why = _try_bubblewrap()
        if not why:
            mode = "bubblewrap"
            reasons.append("bubblewrap works here")
        else:
            reasons.append(f"bubblewrap does not work: {why}")
    if mode == "unavailable" and wanted in ("auto", "landlock"):
        why = _try_landlock(abi)
        if not why:
            mode = "landlock"
            reasons.append(
                f"Landlock (version {abi}) with a system call filter works; it contains files "
                "and network, but leaves modes and times of the daemon's own files changeable"
            )
        else:
            reasons.append(f"Landlock does not work: {why}")
    if mode == "unavailable":
        reasons.append("tools that start programs are switched off")
    if not cgroup:
        reasons.append("no cgroup may be made here: memory and processes are bounded by watching")
    return SandboxReport(mode, bwrap, disables, abi, cgroup, tuple(reasons))


def _try_bubblewrap() -> tuple[str, bool, str]:
    """A real start, as tools are started. Returns its path, whether it can forbid nested
    namespaces, and what went wrong (empty: nothing)."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return "", False, "there is no program bwrap; install the package bubblewrap"
    why = ""
    with tempfile.TemporaryDirectory() as folder:
        fd = os.open(folder, os.O_PATH)
        try:
            for disables in (True, False):
                argv = bubblewrap_argv(
                    bwrap, Cage(folder), ["/bin/sh", "-c", "exit 0"], {"": (fd, True)}, disables
                )
                done = subprocess.run(
                    argv,
                    pass_fds=(fd,),
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=PROBE_TIMEOUT_S,
                    env={"PATH": "/usr/bin:/bin"},
                    check=False,
                )
                if done.returncode == 0:
                    return bwrap, disables, ""
                why = done.stderr.decode(errors="replace").strip()[-300:]
        except (OSError, subprocess.TimeoutExpired) as error:
            why = str(error)
        finally:
            os.close(fd)
    return bwrap, False, why + _userns_hint()


def _userns_hint() -> str:
    switch = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
    try:
        is_restricted = switch.read_text().strip() == "1"
    except OSError:
        return ""
    if not is_restricted:
        return ""
    return " (AppArmor keeps user namespaces from programs without a profile; give bwrap one)"


def _try_landlock(abi: int) -> str:
    """A real restricted process; what went wrong, or the empty text."""
    if not abi:
        return "the kernel has no Landlock, or it is switched off"
    root = Path(__file__).parents[3]
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "from appliance.tools.sandbox import landlock\n"
        "landlock.restrict([landlock.Rule('/usr', False)])\n"
        "landlock.forbid_system_calls()\n"
        "try:\n    open('/etc/passwd')\nexcept PermissionError:\n    raise SystemExit(7)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PROBE_TIMEOUT_S,
        check=False,
    )
    return "" if done.returncode == 7 else done.stderr.decode(errors="replace").strip()[-300:]
