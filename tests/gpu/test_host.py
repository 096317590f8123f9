"""Host RAM within control group limits, read from a made-up file tree."""

from __future__ import annotations

from pathlib import Path

from appliance.gpu.host import host_device
from appliance.gpu.types import GIB, HOST


def machine(root: Path, total_gib: int = 64, free_gib: int = 48) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal: {total_gib * 1024 * 1024} kB\nMemFree: 1024 kB\n"
        f"MemAvailable: {free_gib * 1024 * 1024} kB\n"
    )
    (root / "proc/self/cgroup").write_text("0::/system.slice/appliance.service\n")
    return root


def group(root: Path, path: str, limit: str, used: int, cache: int) -> None:
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(limit + "\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")


def test_host_ram_is_what_the_kernel_can_give(tmp_path: Path) -> None:
    device = host_device(machine(tmp_path))
    assert device.uuid == HOST
    assert device.total_bytes == 64 * GIB
    assert device.free_bytes == 48 * GIB
    assert device.used_bytes == 16 * GIB


def test_a_control_group_limit_makes_the_host_smaller(tmp_path: Path) -> None:
    root = machine(tmp_path)
    group(root, "system.slice/appliance.service", str(16 * GIB), 6 * GIB, 2 * GIB)
    device = host_device(root)
    assert device.total_bytes == 16 * GIB
    assert device.free_bytes == 12 * GIB, "reclaimable page cache counts as free"


def test_the_tightest_group_above_us_counts_and_max_is_no_limit(tmp_path: Path) -> None:
    root = machine(tmp_path)
    group(root, "system.slice/appliance.service", "max", 6 * GIB, 0)
    group(root, "system.slice", str(8 * GIB), 7 * GIB, 0)
    device = host_device(root)
    assert device.total_bytes == 8 * GIB
    assert device.free_bytes == 1 * GIB


def test_version_one_groups_are_read_too(tmp_path: Path) -> None:
    root = machine(tmp_path)
    (root / "proc/self/cgroup").write_text("5:memory:/box\n0::/\n")
    folder = root / "sys/fs/cgroup/memory/box"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(f"{4 * GIB}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{1 * GIB}\n")
    (folder / "memory.stat").write_text("total_inactive_file 0\n")
    assert host_device(root).total_bytes == 4 * GIB


def test_this_machine_has_ram() -> None:
    device = host_device()
    assert device.total_bytes > GIB // 4
    assert 0 <= device.free_bytes <= device.total_bytes
