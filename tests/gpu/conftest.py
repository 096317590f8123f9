"""The stub NVML, built once, loaded under the real pynvml; and sparse model files."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "fakes" / "nvml" / "nvml.c"
LIBRARY = "libnvidia-ml.so.1"


@dataclass
class FakeNvml:
    """The machine the stub describes; `write()` makes what was set visible to the next call."""

    state: Path
    driver: str = "580.10"
    init: int = 0
    hang_ms: int = 0
    gpus: dict[int, list[int]] = field(default_factory=dict)
    processes: list[tuple[int, int, int]] = field(default_factory=list)

    def gpu(self, index: int, total_mib: int = 24576, used_mib: int = 500, err: int = 0) -> None:
        self.gpus[index] = [total_mib, used_mib, 7, 41, 60000, err]

    def process(self, index: int, pid: int, used_mib: int) -> None:
        self.processes.append((index, pid, used_mib))

    def write(self) -> None:
        lines = [f"driver {self.driver}", "cuda 13000"]
        lines += [f"init {self.init}", f"hang_ms {self.hang_ms}"]
        lines += [f"gpu {n} {' '.join(map(str, row))}" for n, row in self.gpus.items()]
        lines += [f"proc {n} {pid} {used}" for n, pid, used in self.processes]
        fresh = self.state.with_suffix(".new")
        fresh.write_text("\n".join(lines) + "\n")
        fresh.replace(self.state)

    def xid(self, index: int, code: int) -> None:
        fresh = self.state.with_suffix(".new")
        fresh.write_text(f"xid {index} {code}\n")
        fresh.replace(f"{self.state}.xid")


def build_stub(folder: Path) -> Path:
    """The stub as a shared library with NVIDIA's name, so that dlopen finds it by that name."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler to build the NVML stub with")
    target = folder / LIBRARY
    command = [compiler, "-std=c11", "-D_GNU_SOURCE", "-shared", "-fPIC"]
    command += [f"-Wl,-soname,{LIBRARY}", "-o", str(target), str(SOURCE)]
    subprocess.run(command, check=True, capture_output=True)
    return target


@pytest.fixture(scope="session")
def stub_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_stub(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def fake_nvml(stub_library: Path, tmp_path: Path) -> Iterator[FakeNvml]:
    """The stub loaded into this process: pynvml's own dlopen then finds it by its soname."""
    ctypes.CDLL(str(stub_library))
    fake = FakeNvml(tmp_path / "state")
    os.environ["FAKE_NVML_STATE"] = str(fake.state)
    yield fake
    del os.environ["FAKE_NVML_STATE"]
