"""Reads a model folder in the Hugging Face layout (what vLLM loads), bounded and code-free.

`config.json` gives the dimensions, the headers of the `*.safetensors` files the bytes. A folder
that could run code when loaded is refused: `auto_map` in its config (remote code), Python files,
pickled weights (CVE-2025-32444 and its kin; `trust_remote_code=False` was bypassed twice). So is
a header that claims what its file cannot hold. Format: safetensors `README.md` (8 bytes of length,
a JSON header of at most 100 MB, then the data).

KV of vLLM: per token and layer `n_kv_heads x head_size x 2 x bytes`, in whole blocks
(`vllm/v1/kv_cache_interface.py`); our engine always passes `kv_cache_memory_bytes`, so that this
number is not a prediction but an order.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from appliance.errors import ModelBroken
from appliance.gpu.types import LayerKind, LayerShape, ModelShape

MAX_HEADER_BYTES = 100 << 20
"""The format's own limit."""
MAX_CONFIG_BYTES = 4 << 20
MAX_FILES = 1024
MAX_LAYERS = 1024
MAX_TENSORS = 200_000
_CODE = frozenset({".py", ".so", ".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt"})
_DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2,
    "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1, "F4": 1,
}  # fmt: skip
_LAYER = re.compile(r"\blayers\.(\d+)\.")


def read_shape(folder: Path) -> ModelShape:
    """The shape of a folder. Raises `ModelBroken` with the reason."""
    _refuse_code(folder)
    config = _config(folder)
    text = config.get("text_config", config)
    n_layer = _number(folder, text, "num_hidden_layers", most=MAX_LAYERS)
    n_embd = _number(folder, text, "hidden_size")
    n_head = _number(folder, text, "num_attention_heads")
    n_head_kv = _number(folder, text, "num_key_value_heads", n_head)
    head = _number(folder, text, "head_dim", n_embd // max(n_head, 1))
    rank = _number(folder, text, "kv_lora_rank", 0)
    rope = _number(folder, text, "qk_rope_head_dim", 0)
    k_width, v_width = (rank + rope, 0) if rank else (head * n_head_kv, head * n_head_kv)
    kinds = _layer_kinds(text, n_layer)
    blocks = [0] * n_layer
    entry = output = file_bytes = 0
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=16)
    for path in sorted(folder.glob("*.safetensors"))[: MAX_FILES + 1]:
        file_bytes += path.stat().st_size
        digest.update(path.name.encode() + path.stat().st_size.to_bytes(8, "little"))
        for name, size in _tensors(path):
            digest.update(name.encode() + size.to_bytes(8, "little"))
            match = _LAYER.search(name)
            if match and int(match[1]) < n_layer:
                blocks[int(match[1])] += size
            elif "embed_tokens" in name or "word_embeddings" in name:
                entry += size
            else:
                output += size
    if file_bytes == 0:
        raise _broken(folder, "holds no *.safetensors file")
    layers = tuple(
        LayerShape(
            kind=kinds[il],
            weight_bytes=blocks[il],
            n_head=n_head,
            k_width=k_width if kinds[il] is not LayerKind.RECURRENT else 0,
            v_width=v_width if kinds[il] is not LayerKind.RECURRENT else 0,
            n_ff=_number(folder, text, "intermediate_size", 4 * n_embd),
        )
        for il in range(n_layer)
    )
    return ModelShape(
        architecture=str(text.get("model_type", "unknown")),
        name=folder.name,
        format="safetensors",
        content_hash=digest.hexdigest(),
        file_bytes=file_bytes,
        layers=layers,
        input_bytes=entry,
        output_bytes=output,
        tied_bytes=0,
        n_embd=n_embd,
        n_vocab=_number(folder, text, "vocab_size"),
        n_ctx_train=_number(folder, text, "max_position_embeddings", 0),
        n_head=n_head,
        n_head_kv=n_head_kv,
        n_ff=_number(folder, text, "intermediate_size", 4 * n_embd),
        window_tokens=_number(folder, text, "sliding_window", 0),
        is_mla=rank > 0,
        is_exact=LayerKind.RECURRENT not in kinds,
        parameters={"is_gated": 1, "kv_lora_rank": rank, "key_length": k_width},
    )


def _refuse_code(folder: Path) -> None:
    names = sorted(entry.name for entry in folder.iterdir())
    if len(names) > MAX_FILES:
        raise _broken(folder, f"holds {len(names)} files; at most {MAX_FILES} are read")
    for name in names:
        if Path(name).suffix in _CODE:
            raise _broken(folder, f"holds {name}, which could run code when loaded")


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise _broken(folder, "has a config.json that is too large")
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise _broken(folder, f"has no readable config.json ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise _broken(folder, f"has a config.json that is no JSON ({error})") from error
    if not isinstance(config, dict):
        raise _broken(folder, "has a config.json that is no object")
    if "auto_map" in config or "auto_map" in (config.get("text_config") or {}):
        raise _broken(folder, "asks for code of its own (auto_map in config.json)")
    if not isinstance(config.get("text_config", {}), dict):
        raise _broken(folder, "has a text_config that is no object")
    return config


def _layer_kinds(text: Mapping[str, Any], n_layer: int) -> tuple[LayerKind, ...]:
    """Per layer: `layer_types` where the config lists them, else one window for all or none."""
    listed = text.get("layer_types")
    if isinstance(listed, list) and len(listed) == n_layer:
        return tuple(_kind(str(item)) for item in listed)
    is_windowed = bool(text.get("sliding_window")) and text.get("use_sliding_window", True)
    return (LayerKind.SLIDING if is_windowed else LayerKind.ATTENTION,) * n_layer


def _kind(name: str) -> LayerKind:
    if "sliding" in name or "chunked" in name:
        return LayerKind.SLIDING
    if "linear" in name or "mamba" in name or "conv" in name or "recurrent" in name:
        return LayerKind.RECURRENT
    return LayerKind.ATTENTION


def _tensors(path: Path) -> Iterator[tuple[str, int]]:
    """(name, bytes) of each tensor, checked against its shape, its type and the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise _broken(path, f"claims a header of {length} bytes; the file has {size}")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise _broken(path, f"has a header that is no JSON ({error})") from error
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise _broken(path, "has a header that is no table of tensors")
    data_bytes = size - 8 - length
    for name, entry in header.items():
        if name != "__metadata__":
            yield name, _tensor_bytes(path, name, entry, data_bytes)


def _tensor_bytes(path: Path, name: str, entry: Any, data_bytes: int) -> int:
    try:
        begin, end = entry["data_offsets"]
        width = _DTYPE_BYTES[entry["dtype"]]
        elements = 1
        for dimension in entry["shape"]:
            if not isinstance(dimension, int) or dimension < 0:
                raise _broken(path, f"has a dimension {dimension!r} in {name!r}")
            elements *= dimension
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(path, f"has a tensor {name!r} that cannot be read ({error!r})") from error
    if not (isinstance(begin, int) and isinstance(end, int) and 0 <= begin <= end <= data_bytes):
        raise _broken(path, f"is cut short: {name!r} lies outside the file")
    if end - begin != elements * width:
        raise _broken(
            path, f"has {end - begin} bytes for {name!r}, its shape needs {elements * width}"
        )
    return int(end - begin)


def _number(
    folder: Path, config: Mapping[str, Any], key: str, default: int | None = None,
    most: int = 1 << 31,
) -> int:  # fmt: skip
    value = config.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise _broken(folder, f"has no usable {key} in config.json ({value!r})")
    return value


def _broken(path: Path, reason: str) -> ModelBroken:
    return ModelBroken(
        f"{path.name} {reason}",
        hint="use a safetensors folder without code of its own",
        details={"path": str(path), "reason": reason},
    )
