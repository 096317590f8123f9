"""No way out of the sandbox: the table of `escapes.py` against each way of containing."""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import select
import shlex
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from appliance.tools.detached import DetachedCalls, Died, Done, Job
from appliance.tools.sandbox.limits import Limits
from appliance.tools.sandbox.plan import Cage
from appliance.tools.sandbox.report import SandboxReport
from tests.tools.escapes import ALONE, ESCAPES, KNOWN, PROTECTED_PARTS

CANARY = "canary-3f9a"
_ADD_KEY, _REQUEST_KEY, _KEYCTL, _KCMP = (
    (217, 218, 219, 272) if platform.machine() == "aarch64" else (248, 249, 250, 312)
)
BREAK = "-- next attempt --"
LIMITS = Limits(memory_bytes=256 << 20, processes=40, file_bytes=32 << 20, cpu_s=10)
TIMEOUT_S = 2.0
"""For an attempt that may hang; those that must come through have `PATIENT_S`."""
PATIENT_S = 40.0
SHARED_MEMORY_KEY = 0x5EC2E7
AT_ONCE = 4


@dataclass
class Host:
    """What the attempts go for, and how to see that one got it."""

    root: Path
    mark: str
    victim: subprocess.Popen[bytes]
    tcp: socket.socket
    udp: socket.socket
    unix: socket.socket
    abstract: socket.socket
    names: dict[str, object] = field(default_factory=dict)

    def damage(self) -> list[str]:
        """What the host shows of an escape."""
        found = []
        secret = self.root / "outside" / "secret"
        if not secret.exists() or secret.read_text() != CANARY:
            found.append("the secret was changed")
        if {path.name for path in secret.parent.iterdir()} != {"secret"}:
            found.append("something was written beside the secret")
        for folder in ("/etc", "/usr", "/tmp", "/var/tmp", "/dev/shm"):
            if os.path.lexists(f"{folder}/{self.mark}"):
                found.append(f"{folder} was written")
        if (self.root / "calls" / "forged.done").exists():
            found.append("a result was forged")
        if self.victim.poll() is not None:
            found.append("the victim was killed")
        if socket.gethostname() == self.mark:
            found.append("the host name was changed")
        if f" {SHARED_MEMORY_KEY} " in Path("/proc/sysvipc/shm").read_text():
            found.append("shared memory of System V is left")
        if select.select([self.udp], [], [], 0)[0]:
            found.append("a datagram came through")
        if survivors(self.mark):
            found.append("a process outlived its call")
        return found


def survivors(mark: str) -> list[int]:
    """Processes on the host whose working folder is a workspace of these attempts."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark in os.readlink(entry / "cwd"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    mark = f"mark-{os.getpid()}-{tmp_path.name}"
    (tmp_path / "outside").mkdir()
    (tmp_path / "calls").mkdir()
    (tmp_path / "outside" / "secret").write_text(CANARY)
    sibling = tmp_path / mark / "another"
    sibling.mkdir(parents=True)
    (sibling / "diary").write_text(CANARY)
    victim = subprocess.Popen(["sleep", "600"], env={"TOKEN": CANARY, "PATH": "/usr/bin:/bin"})
    tcp = socket.create_server(("127.0.0.1", 0))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    udp.setblocking(False)
    unix, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "daemon.sock"))
    unix.listen()
    abstract.bind(f"\0{mark}")
    abstract.listen()
    host = Host(tmp_path, mark, victim, tcp, udp, unix, abstract)
    host.names = {
        "secret": tmp_path / "outside" / "secret",
        "outside": tmp_path / "outside",
        "socket": tmp_path / "daemon.sock",
        "calls": tmp_path / "calls",
        "port": tcp.getsockname()[1],
        "udp_port": udp.getsockname()[1],
        "victim": victim.pid,
        "mark": mark,
        "sibling": sibling / "diary",
        "request_key": _REQUEST_KEY,
        "keyctl": _KEYCTL,
        "kcmp": _KCMP,
    }
    libc = ctypes.CDLL(None)
    # A key of the session that every child of ours inherits; it goes with the session.
    libc.syscall(_ADD_KEY, b"user", mark.encode(), CANARY.encode(), len(CANARY), -3)
    yield host
    victim.kill()
    victim.wait()
    for each in (tcp, udp, unix, abstract):
        each.close()


def make_workspace(host: Host, number: int, has_policy: bool) -> Path:
    """With a secret in it only where a policy hides it: elsewhere to find it is no escape."""
    workspace = host.root / host.mark / str(number)
    for folder in ("tests", "deep/er", "hidden"):
        (workspace / folder).mkdir(parents=True)
    if has_policy:
        (workspace / "hidden" / "secret").write_text(CANARY)
    return workspace


def shared(names: list[str]) -> list[tuple[str, ...]]:
    """The attempts in groups that share a call, so that the table takes seconds."""
    loners = {
        name
        for name in names
        if name in ALONE or any(part in ESCAPES[name] for part in PROTECTED_PARTS)
    }
    others = [name for name in names if name not in loners]
    groups = [tuple(others[start : start + 8]) for start in range(0, len(others), 8)]
    return groups + [(name,) for name in names if name in loners]


async def output_of(*command: str | Path) -> str:
    """Of the system's own tools, which know no path too deep."""
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0, command
    return out.decode()


async def attempt(
    calls: DetachedCalls,
    host: Host,
    number: int,
    names: tuple[str, ...],
    timeout_s: float = TIMEOUT_S,
) -> dict[str, str]:
    """Runs the scripts one after the other; returns which escaped, and how."""
    scripts = [ESCAPES[name].format(**host.names) for name in names]
    has_policy = len(names) == 1 and any(part in ESCAPES[names[0]] for part in PROTECTED_PARTS)
    workspace = make_workspace(host, number, has_policy)
    cage = Cage(
        str(workspace),
        never=(str(host.root / "calls"),),
        read_only=("tests", "absent", "deep/er") if has_policy else (),
        hidden=("hidden",) if has_policy else (),
    )
    command = scripts[0]
    if len(scripts) > 1:
        command = "\n".join(
            f"mkdir {n}; (cd {n}; timeout 2 /bin/bash -c {shlex.quote(script)}); echo; echo {BREAK}"
            for n, script in enumerate(scripts)
        )
    job = Job(
        f"escape-{number}", "hash", cage, LIMITS,
        timeout_s if len(scripts) == 1 else PATIENT_S,
        {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(workspace)},
        ("/bin/bash", "-c", command),
    )  # fmt: skip
    fate = await calls.run(job)
    if isinstance(fate, Died):
        return dict.fromkeys(names, "its runner died")
    assert isinstance(fate, Done)
    output = fate.output.decode("utf-8", "replace")
    if "could not be entered" in output or fate.problem:
        return dict.fromkeys(names, f"it was not tried: {fate.problem or output[:200]}")
    written = int((await output_of("du", "--summarize", "--block-size=1", workspace)).split()[0])
    await output_of("rm", "-rf", workspace)
    if written > LIMITS.file_bytes * 1.5:
        return dict.fromkeys(names, f"it wrote {written} bytes")
    parts = output.split(BREAK)
    assert len(names) == 1 or len(parts) == len(names) + 1, output[-500:]
    return {
        name: part[-200:]
        for name, part in zip(names, parts, strict=False)
        if "ESCAPED" in part or CANARY in part
    }


async def test_no_attempt_escapes(host: Host, sandbox: SandboxReport) -> None:
    assert len(ESCAPES) >= 60
    calls = DetachedCalls(host.root / "calls", sandbox)
    gate = asyncio.Semaphore(AT_ONCE)
    escaped: dict[str, str] = {}

    async def one(number: int, names: tuple[str, ...]) -> None:
        async with gate:
            escaped.update(await attempt(calls, host, number, names))

    async with asyncio.TaskGroup() as tasks:
        for number, names in enumerate(shared(list(ESCAPES))):
            tasks.create_task(one(number, names))
    assert set(escaped) == KNOWN[sandbox.mode], escaped
    assert host.damage() == []


async def test_attempts_escape_without_a_sandbox(host: Host, sandboxes: object) -> None:
    """The table would notice: harmless attempts of it do succeed where nothing contains them."""
    free = SandboxReport("none", "", False, 0, "", ())
    calls = DetachedCalls(host.root / "calls", free)
    harmless = (
        "read by absolute path",
        "read through a link",
        "read the victim's environment",
        "connect to the daemon's socket",
        "TCP to the host",
        "see the victim",
        "read what another session wrote",
        "read the daemon's key ring",
        "limit what the victim may open",
        "pin the victim to a core",
    )
    for number, name in enumerate(harmless):
        assert name in await attempt(calls, host, number, (name,), PATIENT_S)
