"""GGUF files of a few hundred kilobytes with random weights, for what only the shape decides.

The vocabulary is bytes and a few words, so nothing of anyone else's is needed.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tests.engines.chat.vocab import read_metadata

EMBEDDING = 64
HEADS = 4
FEED_FORWARD = 128
LAYERS = 2
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokens() -> tuple[list[bytes], list[float], list[int]]:
    """SentencePiece-style: three control tokens, all bytes, printable characters, two marks."""
    control, byte, normal = 3, 6, 1
    entries = [(b"<unk>", 2), (b"<s>", control), (b"</s>", control)]
    entries += [(f"<0x{value:02X}>".encode(), byte) for value in range(256)]
    entries += [("▁".encode(), normal)]
    entries += [(bytes([value]), normal) for value in range(33, 127)]
    entries += [(b"<|im_start|>", control), (b"<|im_end|>", control)]
    entries += [(f"<pad{index}>".encode(), 5) for index in range(-len(entries) % 32)]
    return (
        [t for t, _ in entries],
        [-float(i) for i in range(len(entries))],
        [k for _, k in entries],
    )


def unprintable() -> list[int]:
    """Every token that is not one printable character."""
    texts, _, kinds = tokens()
    return [n for n, text in enumerate(texts) if len(text) != 1 or kinds[n] != 1]


def _writer(path: Path, arch: str, *, window: int) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(window)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    texts, scores, kinds = tokens()
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(texts.index(b"<|im_end|>"))
    writer.add_add_space_prefix(False)
    writer.add_vocab_size(len(texts))
    writer.add_chat_template(CHATML)
    return writer


def _close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class _Random:
    """Seeded weights, small enough that activations stay finite."""

    def __init__(self, writer: gguf.GGUFWriter, seed: int) -> None:
        self._writer, self._random = writer, np.random.default_rng(seed)

    def add(self, name: str, *shape: int) -> None:
        values = self._random.normal(0, 0.1, shape).astype(np.float32)
        self._writer.add_tensor(name, values)

    def ones(self, name: str, *shape: int) -> None:
        self._writer.add_tensor(name, np.ones(shape, dtype=np.float32))


def llama(path: Path, *, window: int = 512, seed: int = 0) -> Path:
    """An ordinary transformer."""
    writer = _writer(path, "llama", window=window)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(EMBEDDING // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    weights = _Random(writer, seed)
    _attention_blocks(weights)
    _close(writer)
    return path


def gemma2(path: Path, *, window: int = 512, sliding_window: int = 32, seed: int = 1) -> Path:
    """Every second layer sees only a sliding window."""
    writer = _writer(path, "gemma2", window=window)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_key_length(EMBEDDING // HEADS)
    writer.add_value_length(EMBEDDING // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_sliding_window(sliding_window)
    weights = _Random(writer, seed)
    _attention_blocks(weights, has_output=False)
    for layer in range(LAYERS):
        weights.ones(f"blk.{layer}.post_attention_norm.weight", EMBEDDING)
        weights.ones(f"blk.{layer}.post_ffw_norm.weight", EMBEDDING)
    _close(writer)
    return path


def mamba(path: Path, *, window: int = 512, seed: int = 2) -> Path:
    """Recurrent: its memory is one state, which cannot be cut."""
    inner, states, convolution, steps = 2 * EMBEDDING, 16, 4, 4
    writer = _writer(path, "mamba", window=window)
    writer.add_ssm_conv_kernel(convolution)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(states)
    writer.add_ssm_time_step_rank(steps)
    writer.add_layer_norm_rms_eps(1e-5)
    weights = _Random(writer, seed)
    vocabulary = len(tokens()[0])
    weights.add("token_embd.weight", vocabulary, EMBEDDING)
    weights.ones("output_norm.weight", EMBEDDING)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        weights.ones(f"{block}.attn_norm.weight", EMBEDDING)
        weights.add(f"{block}.ssm_in.weight", 2 * inner, EMBEDDING)
        weights.add(f"{block}.ssm_conv1d.weight", inner, convolution)
        weights.add(f"{block}.ssm_conv1d.bias", inner)
        weights.add(f"{block}.ssm_x.weight", steps + 2 * states, inner)
        weights.add(f"{block}.ssm_dt.weight", inner, steps)
        weights.add(f"{block}.ssm_dt.bias", inner)
        weights.add(f"{block}.ssm_a", inner, states)
        weights.ones(f"{block}.ssm_d", inner)
        weights.add(f"{block}.ssm_out.weight", EMBEDDING, inner)
    _close(writer)
    return path


def bert(path: Path, vocabulary: Path, *, window: int = 128, seed: int = 4) -> Path:
    """An encoder without a cache, as embedding models are, with the vocabulary of a real one."""
    known = read_metadata(vocabulary)
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(window)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    texts = known["tokenizer.ggml.tokens"]
    writer.add_tokenizer_model("bert")
    writer.add_token_list(texts)
    writer.add_token_types(known["tokenizer.ggml.token_type"])
    writer.add_token_type_count(2)
    for name in ("unknown", "seperator", "padding", "cls", "mask", "bos", "eos"):
        token = known.get(f"tokenizer.ggml.{name}_token_id")
        if token is not None:
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
    weights = _Random(writer, seed)
    weights.add("token_embd.weight", len(texts), EMBEDDING)
    weights.add("position_embd.weight", window, EMBEDDING)
    weights.add("token_types.weight", 2, EMBEDDING)
    _normed(weights, "token_embd_norm")
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights.add(f"{block}.{name}.weight", EMBEDDING, EMBEDDING)
            weights.add(f"{block}.{name}.bias", EMBEDDING)
        weights.add(f"{block}.ffn_up.weight", FEED_FORWARD, EMBEDDING)
        weights.add(f"{block}.ffn_up.bias", FEED_FORWARD)
        weights.add(f"{block}.ffn_down.weight", EMBEDDING, FEED_FORWARD)
        weights.add(f"{block}.ffn_down.bias", EMBEDDING)
        _normed(weights, f"{block}.attn_output_norm")
        _normed(weights, f"{block}.layer_output_norm")
    _close(writer)
    return path


def lora(path: Path, *, seed: int = 3, rank: int = 4) -> Path:
    """An adapter for `llama`, strong enough to change what it says."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 64.0)
    random = np.random.default_rng(seed)
    for layer in range(LAYERS):
        name = f"blk.{layer}.attn_q.weight"
        a = random.normal(0, 1, (rank, EMBEDDING)).astype(np.float32)
        b = random.normal(0, 1, (EMBEDDING, rank)).astype(np.float32)
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    _close(writer)
    return path


def _attention_blocks(weights: _Random, *, has_output: bool = True) -> None:
    vocabulary = len(tokens()[0])
    weights.add("token_embd.weight", vocabulary, EMBEDDING)
    weights.ones("output_norm.weight", EMBEDDING)
    if has_output:
        weights.add("output.weight", vocabulary, EMBEDDING)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        weights.ones(f"{block}.attn_norm.weight", EMBEDDING)
        weights.ones(f"{block}.ffn_norm.weight", EMBEDDING)
        for name in ("q", "k", "v", "output"):
            weights.add(f"{block}.attn_{name}.weight", EMBEDDING, EMBEDDING)
        weights.add(f"{block}.ffn_gate.weight", FEED_FORWARD, EMBEDDING)
        weights.add(f"{block}.ffn_up.weight", FEED_FORWARD, EMBEDDING)
        weights.add(f"{block}.ffn_down.weight", EMBEDDING, FEED_FORWARD)


def _normed(weights: _Random, name: str) -> None:
    weights.ones(f"{name}.weight", EMBEDDING)
    weights.add(f"{name}.bias", EMBEDDING)
