"""An estimate for people and scripts: bytes by term and device as one JSON-able object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from appliance.errors import BadRequest
from appliance.gpu.calibration import Calibration
from appliance.gpu.estimate import estimate
from appliance.gpu.safetensors import read_shape as read_folder_shape
from appliance.gpu.shape import read_shape
from appliance.gpu.types import Estimate, KvType, LayerKind, ModelShape, PlanParams, Term

MAX_CONTEXT = 1 << 27
MAX_SLOTS = 256
"""llama.cpp's own limit on sequences (`LLAMA_MAX_SEQ`)."""


def read_model(path: Path) -> ModelShape:
    """A GGUF file or a safetensors folder. Raises `ModelBroken`."""
    return read_folder_shape(path) if path.is_dir() else read_shape(path)


def estimate_file(
    path: Path,
    context: int,
    slots: int = 1,
    kv_type: KvType | str = KvType.F16,
    *,
    is_unified: bool = True,
    gpu_layers: int = 0,
    devices: tuple[str, ...] = (),
    tensor_split: tuple[float, ...] = (),
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """What `path` would take. `context` is all cells of the cache (llama.cpp's `n_ctx`), shared by
    `slots` sequences; without `devices` everything is on the host. Raises `ModelBroken`, and
    `BadRequest` for sizes or a KV type that make no sense."""
    if not 0 < context <= MAX_CONTEXT or not 0 < slots <= MAX_SLOTS:
        raise BadRequest(
            f"a context of {context} with {slots} slots cannot be estimated",
            hint=f"contexts up to {MAX_CONTEXT}, slots up to {MAX_SLOTS}",
        )
    try:
        kv_type = KvType(kv_type)
    except ValueError as error:
        known = ", ".join(KvType)
        raise BadRequest(f"there is no KV type {kv_type!r}", hint=f"one of {known}") from error
    model = read_model(path)
    plan = PlanParams(
        n_ctx=context,
        n_seq_max=slots,
        kv_type=kv_type,
        is_unified=is_unified,
        gpu_layers=gpu_layers,
        devices=devices,
        tensor_split=tensor_split,
    )
    return describe(model, plan, estimate(model, plan, calibration or Calibration()))


def describe(model: ModelShape, plan: PlanParams, of: Estimate) -> dict[str, Any]:
    """The estimate with what it was made from; bytes throughout."""
    kinds = [layer.kind for layer in model.layers]
    return {
        "model": model.name,
        "architecture": model.architecture,
        "format": model.format,
        "content_hash": model.content_hash,
        "file_bytes": model.file_bytes,
        "layers": model.n_layer,
        "layers_by_kind": {kind.value: kinds.count(kind) for kind in LayerKind if kind in kinds},
        "n_ctx": plan.n_ctx,
        "slots": plan.n_seq_max,
        "kv_type": plan.kv_type.value,
        "gpu_layers": plan.gpu_layers,
        "basis": of.basis,
        **{f"{term.value}_bytes": of.total_of(term) for term in Term},
        "total_bytes": of.total_bytes,
        "by_device": {
            uuid: {f"{term.value}_bytes": size for term, size in terms.items()}
            | {"total_bytes": sum(terms.values())}
            for uuid, terms in of.terms.items()
            if terms
        },
        "notes": list(of.notes),
    }
