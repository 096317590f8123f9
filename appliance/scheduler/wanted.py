"""What the configuration asks of the scheduler: its models, agents and devices as the core counts.

The daemon and `appliance plan` both read these, so that a plan is of the machine that will run.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from appliance.config.diff import LIVE_MODEL_KEYS
from appliance.config.manifest import ModelFile, model_path
from appliance.config.models import LlamaCppModel, ModelConfig, ScriptedModel, VllmModel
from appliance.config.schema import Config
from appliance.errors import ApplianceError
from appliance.gpu.calibration import Calibration
from appliance.gpu.footprint import ShapeFootprint
from appliance.gpu.safetensors import read_shape as read_folder_shape
from appliance.gpu.shape import read_shape
from appliance.gpu.types import HOST, FixedFootprint, Footprint, Inventory, KvType
from appliance.gpu.vllm import VllmFootprint
from appliance.gpu.wants import Want
from appliance.scheduler.policy import Policy
from appliance.scheduler.values import AgentSpec, DeviceView, ModelSpec

log = logging.getLogger(__name__)

READ_BYTES_PER_S = 1 << 30
"""Of a model's file, until a load was measured: an SSD of the slower kind."""
LLAMACPP_START_S = 0.5
VLLM_START_S = 30.0
FIRST_LOAD_S = 10.0
"""Of a model whose size is not known."""


def device_views(inventory: Inventory, config: Config) -> list[DeviceView]:
    """The inventory as the scheduler counts it: what may be used, and what others use."""
    chosen = config.gpu.devices
    views = []
    for device in inventory.devices:
        if device.is_host:
            capacity = device.total_bytes - config.gpu.host_reserve_bytes
            views.append(DeviceView(HOST, max(capacity, 0), 0))
        elif not chosen or device.uuid in chosen or str(device.index) in chosen:
            capacity = device.total_bytes - config.gpu.reserve_bytes if device.is_usable else 0
            views.append(DeviceView(device.uuid, max(capacity, 0), device.foreign_bytes))
    return views


def model_specs(
    config: Config,
    models_dir: Path,
    manifest: Mapping[str, ModelFile],
    identities: Mapping[str, str] | None = None,
    calibration: Calibration | None = None,
) -> list[ModelSpec]:
    """What the scheduler is told of each model. Reads GGUF headers: call it in a thread.

    `identities`, by model, tell its files from others under the same names; see `model_files`.
    `calibration` is what earlier loads on this machine taught.
    """
    known = identities or {}
    return [
        replace(spec, fingerprint=spec.fingerprint + known.get(spec.name, ""))
        for spec in (
            _spec(name, model, models_dir, manifest, calibration)
            for name, model in config.models.items()
        )
    ]


def model_files(
    config: Config, models_dir: Path, manifest: Mapping[str, ModelFile]
) -> dict[str, tuple[Path, ...]]:
    """The files each model is loaded from, of those that are loaded from files."""
    found = {name: _files_of(model, models_dir, manifest) for name, model in config.models.items()}
    return {name: paths for name, paths in found.items() if paths}


def _files_of(
    model: ModelConfig, models_dir: Path, manifest: Mapping[str, ModelFile]
) -> tuple[Path, ...]:
    if isinstance(model, LlamaCppModel):
        adapters = (models_dir / file for file in model.adapters.values())
        return (model_path(model.file, models_dir, manifest), *adapters)
    if isinstance(model, VllmModel):
        folder = models_dir / model.folder
        return (folder, *sorted(folder.glob("*.safetensors")))
    return ()


def named_pins(spec: ModelSpec, inventory: Inventory) -> ModelSpec:
    """The model with the cards it is pinned to named by UUID, where config gave an index."""
    if not isinstance(spec.demand, Want) or not spec.demand.pin:
        return spec
    uuids = {str(card.index): card.uuid for card in inventory.gpus}
    pin = tuple(uuids.get(card, card) for card in spec.demand.pin)
    return replace(spec, demand=replace(spec.demand, pin=pin))


def unreadable_models(
    config: Config, models_dir: Path, manifest: Mapping[str, ModelFile]
) -> dict[str, str]:
    """Models whose weights are not there or cannot be read, and why. Reads GGUF headers."""
    found = {}
    for name, model in config.models.items():
        if isinstance(model, LlamaCppModel):
            try:
                read_shape(model_path(model.file, models_dir, manifest))
            except ApplianceError as error:
                found[name] = error.message
        elif isinstance(model, VllmModel):
            try:
                read_folder_shape(models_dir / model.folder)
            except ApplianceError as error:
                found[name] = error.message
    return found


def policy_of(config: Config) -> Policy:
    """What of the scheduler's constants the operator may set."""
    return Policy(
        max_waiting=config.daemon.queue_max, yields_to_foreign=config.gpu.yield_to_foreign
    )


def agent_specs(config: Config) -> list[AgentSpec]:
    return [AgentSpec(name, agent.models, agent.weight) for name, agent in config.agents.items()]


def fingerprint(model: ModelConfig) -> str:
    """A hash over everything of a model whose change needs its instance to be reloaded."""
    kept = model.model_dump(mode="json", by_alias=True, exclude=set(LIVE_MODEL_KEYS))
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def _spec(
    name: str,
    model: ModelConfig,
    models_dir: Path,
    manifest: Mapping[str, ModelFile],
    calibration: Calibration | None,
) -> ModelSpec:
    takes_memory = isinstance(model, LlamaCppModel | VllmModel) or (
        isinstance(model, ScriptedModel) and model.vram_bytes > 0
    )
    want = _want(name, model, models_dir, manifest, calibration) if takes_memory else None
    return ModelSpec(
        name=name,
        slots=model.slots,
        needs_memory=takes_memory,
        pinned=getattr(model, "keep_resident", False),
        preload=getattr(model, "keep_resident", False),
        load_s=_load_prior_s(model, models_dir, manifest),
        idle_unload_s=getattr(model, "idle_unload_s", 0.0) or None,
        fingerprint=fingerprint(model),
        demand=want,
        is_elastic=want is not None and want.is_elastic,
    )


def _load_prior_s(model: ModelConfig, models_dir: Path, manifest: Mapping[str, ModelFile]) -> float:
    """Seconds a load is expected to take until one was measured: a start, and the bytes to read."""
    if isinstance(model, ScriptedModel):
        return model.load_s or (FIRST_LOAD_S if model.vram_bytes else 0.0)
    paths = _files_of(model, models_dir, manifest)
    if not paths:
        return 0.0
    found = sum(path.stat().st_size for path in paths if path.is_file())
    start_s = VLLM_START_S if isinstance(model, VllmModel) else LLAMACPP_START_S
    return start_s + found / READ_BYTES_PER_S if found else FIRST_LOAD_S


def _want(
    name: str,
    model: ModelConfig,
    models_dir: Path,
    manifest: Mapping[str, ModelFile],
    calibration: Calibration | None,
) -> Want:
    footprint = _footprint(name, model, models_dir, manifest, calibration)
    if isinstance(model, LlamaCppModel):
        on_host_only = model.gpu_layers == 0
        return Want(
            name,
            footprint,
            context_window=model.context_window,
            slots=model.slots,
            min_context_window=model.context_window_min or None,
            min_slots=model.slots_min,
            kv_types=tuple(KvType(t) for t in (model.kv_type, *model.kv_types_allowed)),
            pin=(HOST,) if on_host_only else model.devices,
            exclusive=model.exclusive,
            priority=-model.priority,
            allow_partial=model.gpu_layers == "auto",
            gpu_layers=None if model.gpu_layers == "auto" else model.gpu_layers,
        )
    if isinstance(model, VllmModel):
        return Want(
            name, footprint, context_window=model.context_window, slots=model.slots,
            min_slots=model.slots, pin=model.devices, exclusive=model.exclusive,
            priority=-model.priority, allow_partial=False, allow_host=HOST in model.devices,
        )  # fmt: skip
    return Want(name, footprint, context_window=model.context_window, slots=model.slots,
                min_slots=model.slots)  # fmt: skip


def _footprint(
    name: str,
    model: ModelConfig,
    models_dir: Path,
    manifest: Mapping[str, ModelFile],
    calibration: Calibration | None,
) -> Footprint:
    """The model's shape; one that cannot be read takes nothing, and fails clearly at its start."""
    if isinstance(model, ScriptedModel):
        return FixedFootprint(model.vram_bytes)
    if isinstance(model, LlamaCppModel):
        try:
            shape = read_shape(model_path(model.file, models_dir, manifest))
        except ApplianceError as error:
            log.warning("model %s: %s", name, error)
            return FixedFootprint(0)
        return ShapeFootprint(
            shape,
            calibration,
            embeddings=model.embeddings,
            n_ubatch=model.batch_tokens,
            is_promise=True,
        )
    if isinstance(model, VllmModel):
        try:
            folder = read_folder_shape(models_dir / model.folder)
        except ApplianceError as error:
            log.warning("model %s: %s", name, error)
            return FixedFootprint(0)
        return VllmFootprint(
            folder, model.tensor_parallel, calibration, ordered_kv_bytes=model.kv_cache_bytes
        )
    return FixedFootprint(0)
