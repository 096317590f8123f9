"""Checks a running daemon makes of itself: journal, disk, devices, models, engines, sandbox."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from appliance.api.bodies import Check
from appliance.config.manifest import ModelFile, model_path
from appliance.config.models import LlamaCppModel, VllmModel
from appliance.config.schema import Config
from appliance.errors import ApplianceError
from appliance.gpu.gguf import precheck
from appliance.gpu.safetensors import read_shape
from appliance.gpu.types import Inventory
from appliance.store.journal import Journal
from appliance.tools.sandbox.report import SandboxReport

FREE_BYTES_WANTED = 1 << 30


async def run_checks(
    *,
    journal: Journal,
    config: Config,
    state_dir: Path,
    models_dir: Path,
    manifest: Mapping[str, ModelFile],
    inventory: Inventory,
    sandbox: SandboxReport,
) -> list[Check]:
    """Every check, in the order a person would mend things."""
    return [
        await _journal(journal),
        _disk(state_dir),
        _engine(),
        _devices(inventory),
        _sandbox(sandbox),
        *(_model(name, entry.file, models_dir, manifest)
          for name, entry in config.models.items() if isinstance(entry, LlamaCppModel)),
        *(_folder(name, entry, models_dir)
          for name, entry in config.models.items() if isinstance(entry, VllmModel)),
    ]  # fmt: skip


async def _journal(journal: Journal) -> Check:
    report = await journal.verify()
    if report.ok:
        return Check(name="journal", ok=True, detail=f"{report.rows} events, the chain holds")
    return Check(
        name="journal",
        ok=False,
        detail=f"the chain breaks at event {report.broken_at}: {report.why}",
        hint="keep the file, and restore a backup",
    )


def _disk(state_dir: Path) -> Check:
    free = shutil.disk_usage(state_dir).free
    return Check(
        name="disk",
        ok=free >= FREE_BYTES_WANTED,
        detail=f"{free / (1 << 30):.1f} GiB free in {state_dir}",
        hint="" if free >= FREE_BYTES_WANTED else "free some space",
    )


def _engine() -> Check:
    has_binding = importlib.util.find_spec("llama_cpp") is not None
    return Check(
        name="llama.cpp",
        ok=has_binding,
        detail="llama-cpp-python is installed" if has_binding else "llama-cpp-python is missing",
        hint="" if has_binding else "./scripts/quickstart.sh installs it",
    )


def _sandbox(report: SandboxReport) -> Check:
    is_strong = report.mode == "bubblewrap"
    return Check(
        name="sandbox",
        ok=report.can_run_programs,
        detail=f"{report.mode}: {'; '.join(report.reasons)}",
        hint="" if is_strong else "install bubblewrap, and allow user namespaces",
    )


def _devices(inventory: Inventory) -> Check:
    gpus = [device.name for device in inventory.gpus]
    if gpus:
        bad = [device.reason for device in inventory.gpus if not device.is_usable]
        return Check(name="gpu", ok=not bad, detail="; ".join(bad) or ", ".join(gpus))
    why = inventory.nvml_error or "no NVIDIA card"
    return Check(name="gpu", ok=True, detail=f"none ({why}): models run on the CPU")


def _model(name: str, file: str, models_dir: Path, manifest: Mapping[str, ModelFile]) -> Check:
    path = model_path(file, models_dir, manifest)
    title = f"model {name}"
    if not path.exists():
        return Check(name=title, ok=False, detail=f"there is no file {path}",
                     hint=f"appliance models fetch {name}")  # fmt: skip
    try:
        precheck(path)
    except ApplianceError as error:
        return Check(name=title, ok=False, detail=error.message, hint=error.hint)
    return Check(name=title, ok=True, detail=f"{path.stat().st_size / 1e6:.0f} MB, well-formed")


def _folder(name: str, entry: VllmModel, models_dir: Path) -> Check:
    """Whether its folder is whole, and its server is there to be started."""
    title, folder = f"model {name}", models_dir / entry.folder
    beside = str(Path(sys.executable).parent)
    if shutil.which(entry.command[0], path=f"{beside}:{os.environ.get('PATH', '')}") is None:
        return Check(name=title, ok=False, detail=f"there is no program {entry.command[0]}",
                     hint="pip install vllm, or name another `command`")  # fmt: skip
    try:
        shape = read_shape(folder)
    except ApplianceError as error:
        return Check(name=title, ok=False, detail=error.message, hint=error.hint)
    return Check(name=title, ok=True, detail=f"{shape.weight_bytes / 1e6:.0f} MB, well-formed")
