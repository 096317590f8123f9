"""From a GGUF header to a `ModelShape`: which layers cache what, and how many bytes weigh where.

What an architecture caches is written in code, not in the file: llama.cpp decides it in
`load_hparams` (`src/llama-model.cpp`), each `src/models/*.cpp` (`load_arch_hparams`) and
`create_memory`. The tables below restate those decisions for the pinned build; a family with a
cache class of its own is listed in `_OWN_CACHE`, its shape is marked inexact, and the caller asks
the dry run instead.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.gpu import gguf
from appliance.gpu.gguf import GgufHeader
from appliance.gpu.keys import Keys
from appliance.gpu.types import LayerKind, LayerShape, ModelShape

MAX_LAYERS = 1024
"""llama.cpp's own limit is 512 (`LLAMA_MAX_LAYERS`)."""

_RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})

_RECURRENT_WITHOUT_KV_HEADS = frozenset(
    {"jamba", "lfm2", "lfm2moe", "plamo2", "granitehybrid", "kimi-linear", "bailingmoe3"}
)
"""Hybrids whose recurrent layers are those with `head_count_kv` 0."""

_RECURRENT_BY_INTERVAL = frozenset({"qwen3next", "qwen35", "qwen35moe", "minimax-01"})
"""Hybrids with full attention in every n-th layer, or a list of the recurrent ones."""

_RECURRENT_BESIDE_ATTENTION = frozenset({"falcon-h1"})

_RECURRENT_OR_FEED_FORWARD = frozenset({"nemotron_h", "nemotron_h_moe"})
"""Each block is one thing alone: attention, recurrence, or a feed-forward net."""

_NO_CACHE = frozenset(
    [
        "bert",
        "modern-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "neo-bert",
        "jina-bert-v2",
        "jina-bert-v3",
        "eurobert",
        "wavtokenizer-dec",
        "gemma-embedding",
        "dream",
        "llada",
        "llada-moe",
        "rnd1",
        "t5encoder",
    ]
)

_OWN_CACHE = frozenset(
    [
        "deepseek32",
        "deepseek4",
        "dots3note",
        "glm-dsa",
        "glm5-next",
        "hy_v4",
        "minimax-m3",
        "qwen4exp",
        "kimi-k3",
        "gemma4-assistant",
        "dflash",
        "eagle3",
        "graniteswitch",
        "nanbeige",
        "t5",
    ]
)
"""Caches of their own class (indexers, compressed states, shared with another model)."""


@dataclass(frozen=True, slots=True)
class _Sliding:
    """How an architecture lays out its windowed layers when the file does not list them."""

    period: int | None
    """Every `period`-th layer is full; None: the file must list the windowed layers."""
    is_dense_first: bool = False
    default_window: int = 0


_SLIDING: dict[str, _Sliding] = {
    "afmoe": _Sliding(4),
    "cohere2": _Sliding(4),
    "cohere2moe": _Sliding(4, is_dense_first=True),
    "exaone-moe": _Sliding(4, default_window=128),
    "exaone4": _Sliding(4, default_window=4096),
    "gemma2": _Sliding(2, default_window=4096),
    "gemma3": _Sliding(6),
    "gemma3n": _Sliding(5),
    "gemma4": _Sliding(None),
    "gpt-oss": _Sliding(2),
    "granite_swa": _Sliding(None),
    "laguna": _Sliding(4, is_dense_first=True),
    "llama4": _Sliding(4, default_window=8192),
    "maple": _Sliding(None),
    "mellum": _Sliding(4),
    "mimo2": _Sliding(None),
    "muse-glimmer": _Sliding(4),
    "olmo2": _Sliding(4),
    "plamo3": _Sliding(8),
    "smallthinker": _Sliding(4, is_dense_first=True, default_window=4096),
    "spark2_5": _Sliding(None),
    "step35": _Sliding(None),
}

_FIXED_WINDOW = frozenset({"llama4", "smallthinker"})
"""llama.cpp overrides the file's window with the default above."""

_GEMMA3N_LAYERS_WITH_KV = 20
_BLOCK = re.compile(r"^blk\.(\d+)\.")
_INPUT_TENSORS = frozenset(
    f"{name}.weight"
    for name in ("token_embd", "position_embd", "token_types", "per_layer_token_embd")
)
_FIRST_BLOCK_TENSORS = frozenset(
    f"{name}.{part}"
    for name in ("token_embd_norm", "rope_freqs", "rope_factors_long", "rope_factors_short")
    for part in ("weight", "bias")
)
"""Used by the blocks, so placed with the first (`LLM_TENSOR_LAYER_REPEATING`); in LFM2 files
`token_embd_norm` is the output norm."""


def read_shape(path: Path) -> ModelShape:
    """The shape of a GGUF model (all its shards). Raises `ModelBroken`."""
    return shape_from(gguf.read_shards(path), gguf.content_hash(path))


def shape_from(headers: Sequence[GgufHeader], content_hash: str = "") -> ModelShape:
    keys = Keys(headers[0])
    arch = keys.architecture
    n_layer = keys.integer("block_count")
    if not 0 < n_layer <= MAX_LAYERS:
        raise keys.broken(f"claims {n_layer} layers; 1 to {MAX_LAYERS} are read")
    n_trunk = n_layer - keys.integer("nextn_predict_layers", 0)
    weights = _weights(arch, headers, n_layer, n_trunk if n_trunk > 0 else n_layer)
    window, swa = _sliding_layers(keys, n_layer)
    n_embd = keys.integer("embedding_length")
    n_vocab = _vocabulary(keys, headers)
    is_mla = keys.integer("attention.key_length_mla", 0) > 0
    layers = tuple(
        _layer(keys, il, n_layer, swa[il], is_mla, weights.blocks[il], weights.experts[il])
        for il in range(n_layer)
    )
    return ModelShape(
        architecture=arch,
        name=keys.text("general.name") or headers[0].path.stem,
        format="gguf",
        content_hash=content_hash,
        file_bytes=sum(header.file_bytes for header in headers),
        layers=layers,
        input_bytes=weights.input,
        output_bytes=weights.output,
        tied_bytes=weights.tied,
        n_embd=n_embd,
        n_vocab=n_vocab,
        n_ctx_train=keys.integer("context_length"),
        n_head=keys.per_layer("attention.head_count", 0, n_layer, 0),
        n_head_kv=max(layer_head_kv(keys, il, n_layer) for il in range(n_layer)),
        n_ff=max(keys.per_layer("feed_forward_length", il, n_layer, 0) for il in range(n_layer)),
        window_tokens=window,
        n_expert=keys.integer("expert_count", 0),
        n_expert_used=keys.per_layer("expert_used_count", 0, n_layer, 0),
        n_ff_expert=keys.per_layer("expert_feed_forward_length", 0, n_layer, 0),
        is_mla=is_mla,
        is_encoder=arch in _NO_CACHE,
        is_exact=arch not in _OWN_CACHE,
        parameters={
            "key_length": keys.head_length("key", False),
            "d_inner": keys.integer("ssm.inner_size", 0),
            "d_state": keys.integer("ssm.state_size", 0),
            "n_group": keys.integer("ssm.group_count", 0),
            "dt_rank": keys.integer("ssm.time_step_rank", 0),
            "kv_lora_rank": keys.integer("attention.kv_lora_rank", 0),
            "is_gated": int(_is_gated(headers)),
            "wkv_head_size": keys.integer("wkv.head_size", 0),
        },
    )


def layer_head_kv(keys: Keys, il: int, n_layer: int) -> int:
    """KV heads of one layer; as many as query heads where the file says nothing."""
    heads = keys.per_layer("attention.head_count", il, n_layer, 0)
    return keys.per_layer("attention.head_count_kv", il, n_layer, heads)


def _layer(
    keys: Keys,
    il: int,
    n_layer: int,
    is_sliding: bool,
    is_mla: bool,
    weight_bytes: int,
    expert_bytes: int,
) -> LayerShape:
    has_cache, has_state = _memory_of(keys, il, n_layer)
    head_kv = layer_head_kv(keys, il, n_layer)
    r_width, s_width = _state_widths(keys) if has_state else (0, 0)
    kind = LayerKind.NONE
    if has_cache:
        kind = LayerKind.SLIDING if is_sliding else LayerKind.ATTENTION
    elif has_state:
        kind = LayerKind.RECURRENT
    return LayerShape(
        kind=kind,
        weight_bytes=weight_bytes,
        expert_bytes=expert_bytes,
        n_head=keys.per_layer("attention.head_count", il, n_layer, 0),
        k_width=keys.head_length("key", is_sliding) * head_kv if has_cache else 0,
        v_width=0 if is_mla or not has_cache else keys.head_length("value", is_sliding) * head_kv,
        r_width=r_width,
        s_width=s_width,
        n_ff=keys.per_layer("feed_forward_length", il, n_layer, 0),
    )


def _memory_of(keys: Keys, il: int, n_layer: int) -> tuple[bool, bool]:
    """Whether this layer has a KV cache, and whether it has a recurrent state."""
    arch = keys.architecture
    n_trunk = n_layer - keys.integer("nextn_predict_layers", 0)
    if arch in _NO_CACHE or (il >= n_trunk > 0):
        return False, False
    if arch in _RECURRENT:
        return False, True
    if arch in _RECURRENT_BESIDE_ATTENTION:
        return True, True
    if arch in _RECURRENT_WITHOUT_KV_HEADS:
        is_recurrent = layer_head_kv(keys, il, n_layer) == 0
        return not is_recurrent, is_recurrent
    if arch in _RECURRENT_BY_INTERVAL:
        listed = keys.raw("attention.recurrent_layers")
        if isinstance(listed, tuple) and len(listed) >= n_layer:
            is_recurrent = bool(listed[il])
        else:
            is_recurrent = (il + 1) % keys.integer("full_attention_interval", 4) != 0
        return not is_recurrent, is_recurrent
    if arch in _RECURRENT_OR_FEED_FORWARD:
        is_feed_forward = keys.per_layer("feed_forward_length", il, n_layer, 0) > 0
        is_recurrent = layer_head_kv(keys, il, n_layer) == 0 and not is_feed_forward
        return not is_recurrent and not is_feed_forward, is_recurrent
    if arch == "gemma3n":
        return il < _GEMMA3N_LAYERS_WITH_KV, False
    if arch == "gemma4":
        return il < n_layer - keys.integer("attention.shared_kv_layers", 0), False
    return True, False


def _state_widths(keys: Keys) -> tuple[int, int]:
    """f32 elements per sequence: `llama_hparams::n_embd_r` and `n_embd_s`, same order of cases."""
    n_embd = keys.integer("embedding_length")
    if head := keys.integer("wkv.head_size", 0):
        return keys.integer("token_shift_count", 2) * n_embd, n_embd * head
    conv, inner = keys.integer("ssm.conv_kernel", 0), keys.integer("ssm.inner_size", 0)
    state, groups = keys.integer("ssm.state_size", 0), keys.integer("ssm.group_count", 0)
    if cache := keys.integer("shortconv.l_cache", 0):
        return n_embd * (cache - 1), state * inner
    if head := keys.integer("kda.head_dim", 0):
        n_head = keys.per_layer("attention.head_count", 0, 1, 0)
        return 3 * (conv - 1 if conv else 3) * n_head * head, head * head * n_head
    if keys.architecture == "minimax-01":
        heads = keys.per_layer("attention.head_count", 0, 1, 0)
        return 0, keys.head_length("key", False) ** 2 * heads
    return max(conv - 1, 0) * (inner + 2 * groups * state), state * inner


def _sliding_layers(keys: Keys, n_layer: int) -> tuple[int, tuple[bool, ...]]:
    """The window in tokens (0: none) and which layers have it."""
    none = (False,) * n_layer
    arch = keys.architecture
    rule = _SLIDING.get(arch)
    default = 0 if rule is None or arch == "smallthinker" else rule.default_window
    window = keys.integer("attention.sliding_window", default)
    if arch in ("lfm2", "lfm2moe") and window:
        return window, tuple(layer_head_kv(keys, il, n_layer) > 0 for il in range(n_layer))
    if rule is None or window == 0 or (arch == "exaone4" and n_layer != 64):
        return 0, none
    if arch in _FIXED_WINDOW:
        window = rule.default_window
    listed = keys.raw("attention.sliding_window_pattern")
    if isinstance(listed, tuple):
        if len(listed) < n_layer:
            raise keys.broken(f"lists {len(listed)} layers in its window pattern of {n_layer}")
        return window, tuple(bool(item) for item in listed[:n_layer])
    if rule.period is None:
        raise keys.broken("lists no windowed layers (attention.sliding_window_pattern)")
    period = listed if isinstance(listed, int) else rule.period
    return window, tuple(_is_windowed(il, period, rule.is_dense_first) for il in range(n_layer))


def _is_windowed(il: int, period: int, is_dense_first: bool) -> bool:
    if period == 0:
        return True
    return il % period != 0 if is_dense_first else il % period < period - 1


@dataclass(frozen=True, slots=True)
class _Weights:
    blocks: tuple[int, ...]
    experts: tuple[int, ...]
    input: int
    output: int
    tied: int


def _weights(arch: str, headers: Sequence[GgufHeader], n_layer: int, n_trunk: int) -> _Weights:
    """Bytes per block, each tensor padded to 32 as the backend's allocator does.

    Draft (next-token prediction) blocks come after the trunk and are skipped by the loader
    (`load_mtp` is false by default)."""
    blocks, experts = [0] * n_layer, [0] * n_layer
    entry = output = embedding = 0
    has_head = False
    for header in headers:
        for tensor in header.tensors:
            size = -(-tensor.bytes // 32) * 32
            match = _BLOCK.match(tensor.name)
            if match and n_trunk <= int(match[1]) < n_layer:
                continue
            if match and int(match[1]) < n_layer:
                blocks[int(match[1])] += size
                if "_exps." in tensor.name:
                    experts[int(match[1])] += size
            elif tensor.name in _FIRST_BLOCK_TENSORS and not arch.startswith("lfm2"):
                blocks[0] += size
            elif tensor.name in _INPUT_TENSORS:
                entry += size
                embedding = size if tensor.name == "token_embd.weight" else embedding
            else:
                output += size
                has_head = has_head or tensor.name == "output.weight"
    return _Weights(tuple(blocks), tuple(experts), entry, output, 0 if has_head else embedding)


def _is_gated(headers: Sequence[GgufHeader]) -> bool:
    """A feed-forward net with a gate, as a tensor of its own or the first half of `ffn_up`."""
    for header in headers:
        for tensor in header.tensors:
            if ".ffn_gate" in tensor.name:
                return True
            if tensor.name == "blk.0.ffn_up.weight":
                down = next((t for t in header.tensors if t.name == "blk.0.ffn_down.weight"), None)
                if down is not None and tensor.dimensions[1] == 2 * down.dimensions[0]:
                    return True
    return False


def _vocabulary(keys: Keys, headers: Sequence[GgufHeader]) -> int:
    for header in headers:
        for tensor in header.tensors:
            if tensor.name == "token_embd.weight" and len(tensor.dimensions) > 1:
                return tensor.dimensions[1]
    return keys.items("tokenizer.ggml.tokens") or keys.integer("vocab_size", 0)
