"""Between the scheduler's question (does this model fit these free bytes?) and the GPU room."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from appliance.config.diff import LIVE_MODEL_KEYS
from appliance.config.manifest import ModelFile, model_path
from appliance.config.models import LlamaCppModel, ModelConfig, ScriptedModel, VllmModel
from appliance.config.schema import Config
from appliance.errors import ApplianceError
from appliance.gpu import refusal
from appliance.gpu.footprint import ShapeFootprint
from appliance.gpu.placement import search_any
from appliance.gpu.shape import read_shape
from appliance.gpu.space import Space
from appliance.gpu.types import (
    HOST,
    FixedFootprint,
    Footprint,
    Inventory,
    KvType,
    NoFit,
    PlacementPolicy,
    Want,
)
from appliance.scheduler.values import AgentSpec, Capacity, DeviceView, Fit, Misfit, ModelSpec

log = logging.getLogger(__name__)


class MemoryPlacer:
    """`scheduler.values.Placer` on the GPU room's placement.

    `capacity` gives the scheduler's view, from which it is seen whether a card holds something of
    ours: an exclusive model takes none of those, and nobody else a card of a loaded exclusive one.
    A card that would be empty after an eviction counts as empty.
    """

    def __init__(
        self, capacity: Callable[[], Capacity], is_exclusive: Callable[[str], bool]
    ) -> None:
        self._capacity = capacity
        self._is_exclusive = is_exclusive

    def place(self, spec: ModelSpec, free: Mapping[str, int]) -> Fit | Misfit:
        want = spec.demand
        assert isinstance(want, Want), "models with memory carry a Want"
        cards = tuple(uuid for uuid in free if uuid != HOST)
        space = Space(dict(free), cards, *self._held(free))
        policy = PlacementPolicy(reserve_bytes=0, host_reserve_bytes=0)
        placement = search_any(want, space, policy)
        if placement is not None:
            return Fit(placement.by_device, placement.slots, placement)
        no: NoFit = refusal.explain(want, space, policy, search_any)
        near = "; ".join(choice.text for choice in no.choices)
        most = max(no.available_bytes.values(), default=0)
        return Misfit(f"{no.reason}. It would fit with: {near}" if near else no.reason,
                      max(no.needed_bytes - most, 0))  # fmt: skip

    def _held(self, free: Mapping[str, int]) -> tuple[frozenset[str], frozenset[str]]:
        """Cards that hold something of ours, and among them those of exclusive models."""
        capacity = self._capacity()
        taken = frozenset(
            view.device
            for view in capacity.devices
            if free.get(view.device, 0) < view.capacity_bytes - view.foreign_bytes
        )
        exclusive = {
            device
            for name, model in capacity.models.items()
            if self._is_exclusive(name)
            for device, size in model.bytes_by_device.items()
            if size > 0
        }
        return taken, taken & exclusive


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
    config: Config, models_dir: Path, manifest: Mapping[str, ModelFile]
) -> list[ModelSpec]:
    """What the scheduler is told of each model. Reads GGUF headers: call it in a thread."""
    return [_spec(name, model, models_dir, manifest) for name, model in config.models.items()]


def agent_specs(config: Config) -> list[AgentSpec]:
    return [AgentSpec(name, agent.models, agent.weight) for name, agent in config.agents.items()]


def fingerprint(model: ModelConfig) -> str:
    """A hash over everything of a model whose change needs its instance to be reloaded."""
    kept = model.model_dump(mode="json", by_alias=True, exclude=set(LIVE_MODEL_KEYS))
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def _spec(
    name: str, model: ModelConfig, models_dir: Path, manifest: Mapping[str, ModelFile]
) -> ModelSpec:
    takes_memory = isinstance(model, LlamaCppModel | VllmModel) or (
        isinstance(model, ScriptedModel) and model.vram_bytes > 0
    )
    return ModelSpec(
        name=name,
        slots=model.slots,
        needs_memory=takes_memory,
        pinned=getattr(model, "keep_resident", False),
        preload=getattr(model, "keep_resident", False),
        load_s=getattr(model, "load_s", 0.0) or (10.0 if takes_memory else 0.0),
        idle_unload_s=getattr(model, "idle_unload_s", 0.0) or None,
        fingerprint=fingerprint(model),
        demand=_want(name, model, models_dir, manifest) if takes_memory else None,
    )


def _want(
    name: str, model: ModelConfig, models_dir: Path, manifest: Mapping[str, ModelFile]
) -> Want:
    footprint = _footprint(name, model, models_dir, manifest)
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
        )
    if isinstance(model, VllmModel):
        return Want(
            name, footprint, context_window=model.context_window, slots=model.slots,
            min_slots=model.slots, pin=model.devices, exclusive=model.exclusive,
            priority=-model.priority, allow_partial=False,
        )  # fmt: skip
    return Want(name, footprint, context_window=model.context_window, slots=model.slots,
                min_slots=model.slots)  # fmt: skip


def _footprint(
    name: str, model: ModelConfig, models_dir: Path, manifest: Mapping[str, ModelFile]
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
        return ShapeFootprint(shape, embeddings=model.embeddings, n_ubatch=model.batch_tokens)
    folder = models_dir / model.folder if isinstance(model, VllmModel) else models_dir
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    kv_bytes = model.kv_cache_bytes if isinstance(model, VllmModel) else 0
    return FixedFootprint(weights + kv_bytes)
