"""Transformers of the usual kind, and those with latent attention or an encoder."""

from __future__ import annotations

from tests.gpu.sparse import Sketch


def dense(
    name: str,
    arch: str,
    layers: int,
    embd: int,
    heads: int,
    kv: int,
    ff: int,
    vocab: int,
    *,
    head: int | None = None,
    context: int = 32768,
    tied: bool = False,
    metadata: dict[str, object] | None = None,
    qk_norm: bool = False,
    post_norms: bool = False,
    fused_up: bool = False,
    fused_qkv: bool = False,
    gate: bool = True,
    biases: bool = False,
    norm_biases: bool = False,
    ffn_norm: bool = True,
    attn_norm: bool = True,
    experts: int = 0,
    used: int = 0,
    ff_expert: int = 0,
    ff_shared: int = 0,
    sinks: bool = False,
    full_norms: bool = False,
) -> Sketch:
    """A transformer of the usual kind; the options are what families differ in."""
    head = head or embd // heads
    keys: dict[str, object] = {
        "vocab_size": vocab,
        "context_length": context,
        "embedding_length": embd,
        "block_count": layers,
        "feed_forward_length": ff,
        "attention.head_count": heads,
        "attention.head_count_kv": kv,
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
    }
    if experts:
        keys |= {"expert_count": experts, "expert_used_count": used}
        if ff_expert:
            keys["expert_feed_forward_length"] = ff_expert
        if ff_shared:
            keys["expert_shared_feed_forward_length"] = ff_shared
    model = Sketch(name, arch, keys | (metadata or {}))
    model.add("token_embd.weight", embd, vocab)
    model.add("output_norm.weight", embd)
    norm_biases = norm_biases or biases
    if norm_biases:
        model.add("output_norm.bias", embd)
    if not tied:
        model.add("output.weight", embd, vocab, kind="Q6_K" if embd % 256 == 0 else None)
    for il in range(layers):
        block = f"blk.{il}."
        if attn_norm:
            model.add(block + "attn_norm.weight", embd)
            if norm_biases:
                model.add(block + "attn_norm.bias", embd)
        add_attention(model, block, embd, heads, kv, head, fused_qkv, biases)
        if qk_norm:
            model.add(block + "attn_q_norm.weight", heads * head if full_norms else head)
            model.add(block + "attn_k_norm.weight", kv * head if full_norms else head)
        if sinks:
            model.add(block + "attn_sinks.weight", heads)
        if post_norms or sinks:
            model.add(block + "post_attention_norm.weight", embd)
        if ffn_norm:
            model.add(block + "ffn_norm.weight", embd)
            if norm_biases:
                model.add(block + "ffn_norm.bias", embd)
        if experts:
            add_experts(model, block, embd, ff_expert or ff, experts, ff_shared, biased=sinks)
        else:
            add_feed_forward(model, block, embd, ff, gate, fused_up, biases)
        if post_norms:
            model.add(block + "post_ffw_norm.weight", embd)
    return model


def add_attention(
    model: Sketch, block: str, embd: int, heads: int, kv: int, head: int, fused: bool, bias: bool
) -> None:
    if fused:
        model.add(block + "attn_qkv.weight", embd, (heads + 2 * kv) * head)
        if bias:
            model.add(block + "attn_qkv.bias", (heads + 2 * kv) * head)
    else:
        for part, width in (("q", heads), ("k", kv), ("v", kv)):
            model.add(block + f"attn_{part}.weight", embd, width * head)
            if bias:
                model.add(block + f"attn_{part}.bias", width * head)
    model.add(block + "attn_output.weight", heads * head, embd)
    if bias:
        model.add(block + "attn_output.bias", embd)


def add_feed_forward(
    model: Sketch, block: str, embd: int, ff: int, gate: bool, fused_up: bool, bias: bool
) -> None:
    if gate and not fused_up:
        model.add(block + "ffn_gate.weight", embd, ff)
    model.add(block + "ffn_up.weight", embd, 2 * ff if fused_up else ff)
    model.add(block + "ffn_down.weight", ff, embd)
    if bias:
        model.add(block + "ffn_up.bias", ff)
        model.add(block + "ffn_down.bias", embd)


def add_experts(
    model: Sketch, block: str, embd: int, ff: int, count: int, shared: int, *, biased: bool
) -> None:
    model.add(block + "ffn_gate_inp.weight", embd, count, kind="F32")
    kind = "MXFP4" if biased else ("Q4_K" if ff % 256 == 0 else "Q8_0")
    for part, rows, columns in (("gate", embd, ff), ("up", embd, ff), ("down", ff, embd)):
        model.add(block + f"ffn_{part}_exps.weight", rows, columns, count, kind=kind)
        if biased:
            model.add(block + f"ffn_{part}_exps.bias", columns, count, kind="F32")
    if biased:
        model.add(block + "attn_output.bias", embd)
        model.add(block + "ffn_gate_inp.bias", count)
    if shared:
        for part, rows, columns in (("gate", embd, shared), ("up", embd, shared)):
            model.add(block + f"ffn_{part}_shexp.weight", rows, columns)
        model.add(block + "ffn_down_shexp.weight", shared, embd)


def mla(
    name: str, layers: int, embd: int, heads: int, ff: int, experts: int, used: int,
    ff_expert: int, *, q_rank: int = 0, dense_lead: int = 1, shared: int = 2, vocab: int = 102400,
) -> Sketch:  # fmt: skip
    """DeepSeek's latent attention, absorbed: one latent of 512 + 64 per token is cached."""
    rank, rope, nope, value = 512, 64, 128, 128
    keys: dict[str, object] = {
        "vocab_size": vocab, "context_length": 131072, "embedding_length": embd,
        "block_count": layers, "feed_forward_length": ff, "attention.head_count": heads,
        "attention.head_count_kv": 1, "attention.key_length": rank + rope,
        "attention.value_length": rank, "attention.key_length_mla": nope + rope,
        "attention.value_length_mla": value, "attention.kv_lora_rank": rank,
        "rope.dimension_count": rope, "attention.layer_norm_rms_epsilon": 1e-6,
        "leading_dense_block_count": dense_lead, "expert_count": experts,
        "expert_used_count": used, "expert_feed_forward_length": ff_expert,
        "expert_shared_count": shared, "expert_weights_scale": 1.0,
    }  # fmt: skip
    if q_rank:
        keys["attention.q_lora_rank"] = q_rank
    model = Sketch(name, "deepseek2", keys)
    model.add("token_embd.weight", embd, vocab)
    model.add("output_norm.weight", embd)
    model.add("output.weight", embd, vocab)
    for il in range(layers):
        block = f"blk.{il}."
        model.add(block + "attn_norm.weight", embd)
        if q_rank:
            model.add(block + "attn_q_a_norm.weight", q_rank)
            model.add(block + "attn_q_a.weight", embd, q_rank)
            model.add(block + "attn_q_b.weight", q_rank, heads * (nope + rope))
        else:
            model.add(block + "attn_q.weight", embd, heads * (nope + rope))
        model.add(block + "attn_kv_a_norm.weight", rank)
        model.add(block + "attn_kv_a_mqa.weight", embd, rank + rope)
        model.add(block + "attn_k_b.weight", nope, rank, heads, kind="Q8_0")
        model.add(block + "attn_v_b.weight", rank, value, heads)
        model.add(block + "attn_output.weight", heads * value, embd)
        model.add(block + "ffn_norm.weight", embd)
        if il < dense_lead:
            add_feed_forward(model, block, embd, ff, True, False, False)
        else:
            add_experts(model, block, embd, ff_expert, experts, ff_expert * shared, biased=False)
    return model


def qwen2moe(name: str, layers: int, embd: int, heads: int, ff: int, shared: int) -> Sketch:
    model = dense(
        name, "qwen2moe", layers, embd, heads, heads, ff, 151936,
        experts=60, used=4, ff_expert=ff, ff_shared=shared,
    )  # fmt: skip
    for il in range(layers):
        model.add(f"blk.{il}.ffn_gate_inp_shexp.weight", embd)
    return model


def bert(name: str, arch: str, layers: int, embd: int, heads: int, ff: int) -> Sketch:
    vocab, context = 30522, 512 if arch == "bert" else 2048
    model = dense(
        name, arch, layers, embd, heads, heads, ff, vocab, context=context, tied=True,
        attn_norm=False, ffn_norm=False, gate=arch != "bert", biases=False,
        metadata={"attention.causal": False, "pooling_type": 2,
                  "tokenizer.ggml.token_type_count": 2},
    )  # fmt: skip
    model.tensors = [row for row in model.tensors if row[0] != "output_norm.weight"]
    model.add("token_types.weight", embd, 2, kind="F32")
    if arch == "bert":
        model.add("position_embd.weight", embd, context, kind="F32")
    model.add("token_embd_norm.weight", embd)
    model.add("token_embd_norm.bias", embd)
    for il in range(layers):
        for part in ("attn_output_norm", "layer_output_norm"):
            model.add(f"blk.{il}.{part}.weight", embd)
            model.add(f"blk.{il}.{part}.bias", embd)
    return model


def gemma3(
    name: str, layers: int, embd: int, heads: int, kv: int, ff: int, head: int, window: int
) -> Sketch:
    return dense(
        name, "gemma3", layers, embd, heads, kv, ff, 262144, head=head, tied=True, qk_norm=True,
        post_norms=True, context=131072, metadata={"attention.sliding_window": window},
    )  # fmt: skip


def gemma2(name: str, layers: int, embd: int, heads: int, kv: int, ff: int, head: int) -> Sketch:
    return dense(
        name, "gemma2", layers, embd, heads, kv, ff, 256000, head=head, tied=True,
        post_norms=True, context=8192, metadata={"attention.sliding_window": 4096},
    )  # fmt: skip


def qwen3(name: str, layers: int, embd: int, heads: int, kv: int, ff: int, tied: bool) -> Sketch:
    return dense(
        name, "qwen3", layers, embd, heads, kv, ff, 151936, head=128, tied=tied, qk_norm=True,
        context=40960,
    )  # fmt: skip


def gpt_oss(name: str, layers: int, experts: int) -> Sketch:
    return dense(
        name, "gpt-oss", layers, 2880, 64, 8, 2880, 201088, head=64, experts=experts, used=4,
        ff_expert=2880, sinks=True, ffn_norm=False, context=131072,
        metadata={"attention.sliding_window": 128, "rope.scaling.type": "yarn",
                  "rope.scaling.factor": 32.0},
    )  # fmt: skip


def gpt2(name: str, layers: int, embd: int, heads: int, ff: int) -> Sketch:
    model = dense(
        name, "gpt2", layers, embd, heads, heads, ff, 50257, gate=False, biases=True,
        fused_qkv=True, tied=True, context=1024,
    )  # fmt: skip
    model.add("position_embd.weight", embd, 1024, kind="F32")
    return model


def minimax_m2() -> Sketch:
    model = dense(
        "minimax-m2", "minimax-m2", 62, 3072, 48, 8, 1536, 200064, head=128, experts=256, used=8,
        ff_expert=1536, qk_norm=True, full_norms=True, context=196608,
        metadata={"expert_gating_func": 2},
    )  # fmt: skip
    for il in range(62):
        model.add(f"blk.{il}.exp_probs_b.bias", 256)
    return model
