"""vLLM folders: dimensions and bytes read without code, hostile ones refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ModelBroken
from appliance.gpu.safetensors import read_shape
from appliance.gpu.types import GIB, HOST, Device, Inventory, KvType, LayerKind, Term
from appliance.gpu.vllm import (
    SPARE_TOKENS,
    VllmFootprint,
    VllmPlan,
    estimate_vllm,
    kv_cache_bytes,
)
from appliance.gpu.wants import NoFit, Placement, Want
from tests.gpu.placing import place

CONFIG: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
}


def folder(
    root: Path, config: dict[str, Any] | None = None, tensors: dict[str, list[int]] | None = None
) -> Path:
    """A folder with one sparse safetensors file of BF16 tensors."""
    root.mkdir(exist_ok=True)
    (root / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    shapes = tensors or {
        "model.embed_tokens.weight": [151936, 1024],
        "lm_head.weight": [151936, 1024],
        **{f"model.layers.{il}.mlp.up_proj.weight": [3072, 1024] for il in range(4)},
    }
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    with (root / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + offset)
    return root


def test_a_folder_tells_its_dimensions_and_bytes(tmp_path: Path) -> None:
    shape = read_shape(folder(tmp_path / "m"))
    assert shape.format == "safetensors"
    assert shape.n_layer == 4
    assert shape.layers[0].k_width == 8 * 128
    assert shape.weight_bytes == 2 * (2 * 151936 * 1024 + 4 * 3072 * 1024)


def test_latent_and_windowed_attention_are_understood(tmp_path: Path) -> None:
    latent = read_shape(folder(tmp_path / "a", {"kv_lora_rank": 512, "qk_rope_head_dim": 64}))
    assert latent.is_mla
    assert (latent.layers[0].k_width, latent.layers[0].v_width) == (576, 0)
    kinds = ["sliding_attention", "full_attention", "linear_attention", "full_attention"]
    mixed = read_shape(folder(tmp_path / "b", {"layer_types": kinds, "sliding_window": 512}))
    assert [layer.kind for layer in mixed.layers] == [
        LayerKind.SLIDING,
        LayerKind.ATTENTION,
        LayerKind.RECURRENT,
        LayerKind.ATTENTION,
    ]
    nested = read_shape(folder(tmp_path / "c", {"text_config": dict(CONFIG, hidden_size=512)}))
    assert nested.n_embd == 512


@pytest.mark.parametrize(
    "name", ["modeling_evil.py", "pytorch_model.bin", "weights.pt", "x.pkl", "lib.so"]
)
def test_files_that_could_run_code_are_refused(tmp_path: Path, name: str) -> None:
    path = folder(tmp_path / "m")
    (path / name).write_bytes(b"")
    with pytest.raises(ModelBroken, match="could run code"):
        read_shape(path)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"auto_map": {"AutoModel": "evil--x.Y"}}, "auto_map"),
        ({"text_config": dict(CONFIG, auto_map={})}, "auto_map"),
        ({"text_config": []}, "no object"),
        ({"num_hidden_layers": 1 << 40}, "num_hidden_layers"),
        ({"hidden_size": "many"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
    ],
)
def test_hostile_configs_are_refused(tmp_path: Path, config: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelBroken, match=reason):
        read_shape(folder(tmp_path / "m", config))


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"\xff" * 8, "claims a header"),
        (struct.pack("<Q", 4) + b"[[[[", "no JSON"),
        (struct.pack("<Q", 2) + b"[]", "no table"),
        (b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', "claims a header"),
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, header: bytes, reason: str) -> None:
    path = folder(tmp_path / "m")
    (path / "model.safetensors").write_bytes(header)
    with pytest.raises(ModelBroken, match=reason):
        read_shape(path)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 160]}, "outside the file"),
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}, "its shape needs 16"),
        ({"dtype": "F31", "shape": [4], "data_offsets": [0, 16]}, "cannot be read"),
        ({"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}, "dimension -4"),
        ({"dtype": "F32", "shape": [4], "data_offsets": [0]}, "cannot be read"),
    ],
)
def test_tensors_that_lie_are_refused(tmp_path: Path, entry: dict[str, Any], reason: str) -> None:
    path = folder(tmp_path / "m")
    raw = json.dumps({"a": entry}).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + b"\0" * 16)
    with pytest.raises(ModelBroken, match=reason):
        read_shape(path)


def test_the_kv_order_is_whole_blocks_of_every_slots_window_and_a_little(tmp_path: Path) -> None:
    shape = read_shape(folder(tmp_path / "m"))
    plan = VllmPlan(4096, 8, devices=("GPU-0",))
    per_token = 4 * 2 * 8 * 128 * 2
    assert kv_cache_bytes(shape, plan) == (8 * 4096 + SPARE_TOKENS) * per_token
    assert kv_cache_bytes(shape, VllmPlan(4096, 8, KvType.Q8_0, ("GPU-0",))) * 2 == (
        kv_cache_bytes(shape, plan)
    )
    two = VllmPlan(4096, 8, devices=("GPU-0", "GPU-1"))
    assert kv_cache_bytes(shape, two) * 2 == kv_cache_bytes(shape, plan)
    of = estimate_vllm(shape, two)
    assert of.terms["GPU-0"][Term.WEIGHTS] == -(-shape.weight_bytes // 2)
    assert of.bytes_on("GPU-0") == of.bytes_on("GPU-1")


def test_tensor_parallel_ranks_get_a_card_each_or_none(tmp_path: Path) -> None:
    shape = read_shape(folder(tmp_path / "m"))
    want = Want("m", VllmFootprint(shape, ranks=2), 4096, 2, allow_partial=False, allow_host=False)

    def machine(*gib: int) -> Inventory:
        cards = [Device(f"GPU-{n}", n, "x", g * GIB, 0, g * GIB) for n, g in enumerate(gib)]
        return Inventory((*cards, Device(HOST, -1, "ram", 32 * GIB, 0, 32 * GIB)), 0.0)

    placed = place(want, machine(24, 24), {})
    assert isinstance(placed, Placement)
    assert placed.tensor_split == (1.0, 1.0)
    assert len(placed.cards) == 2
    assert isinstance(place(want, machine(80), {}), NoFit)
