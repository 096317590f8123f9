"""Host RAM as a device: what the kernel says there is, within what the control group allows.

Sources: proc(5) `/proc/meminfo`; kernel `admin-guide/cgroup-v2.rst` (`memory.max`,
`memory.current`, `memory.stat`); version 1 names them `memory.limit_in_bytes` and so on.
"""

from __future__ import annotations

from pathlib import Path

from appliance.gpu.types import HOST, Device

_ROOT = Path("/")


def host_device(root: Path = _ROOT) -> Device:
    """RAM right now, in bytes. `free` counts what the kernel would give up (page cache)."""
    memory = _meminfo(root / "proc/meminfo")
    total = memory["MemTotal"]
    free = memory.get("MemAvailable", memory.get("MemFree", 0))
    for limit, used in _limits(root):
        if limit < total:
            total = limit
        free = min(free, max(limit - used, 0))
    return Device(
        uuid=HOST,
        index=-1,
        name="host RAM",
        total_bytes=total,
        used_bytes=max(total - free, 0),
        free_bytes=free,
    )


def _meminfo(path: Path) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for line in path.read_text().splitlines():
        name, _, rest = line.partition(":")
        sizes[name] = int(rest.split()[0]) * 1024
    return sizes


def _limits(root: Path) -> list[tuple[int, int]]:
    """(limit, used without reclaimable cache) of each control group from ours up to the root."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    limits: list[tuple[int, int]] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        group = base / path.lstrip("/")
        while True:
            found = _limit(group, *names)
            if found is not None:
                limits.append(found)
            if group == base or base not in group.parents:
                break
            group = group.parent
    return limits


def _limit(group: Path, limit_name: str, used_name: str) -> tuple[int, int] | None:
    try:
        limit = (group / limit_name).read_text().strip()
        used = int((group / used_name).read_text())
        stat = (group / "memory.stat").read_text()
    except (OSError, ValueError):
        return None
    if not limit.isdigit():
        return None
    reclaimable = 0
    for line in stat.splitlines():
        name, _, size = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            reclaimable = int(size)
    return int(limit), max(used - reclaimable, 0)
