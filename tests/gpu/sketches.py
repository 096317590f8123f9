"""Sketches of real models: dimensions as published, tensors as llama.cpp's loader expects them."""

from __future__ import annotations

from collections.abc import Callable

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
    if biases:
        model.add("output_norm.bias", embd)
    if not tied:
        model.add("output.weight", embd, vocab, kind="Q6_K" if embd % 256 == 0 else None)
    for il in range(layers):
        block = f"blk.{il}."
        if attn_norm:
            model.add(block + "attn_norm.weight", embd)
            if biases:
                model.add(block + "attn_norm.bias", embd)
        _attention(model, block, embd, heads, kv, head, fused_qkv, biases)
        if qk_norm:
            model.add(block + "attn_q_norm.weight", heads * head if full_norms else head)
            model.add(block + "attn_k_norm.weight", kv * head if full_norms else head)
        if sinks:
            model.add(block + "attn_sinks.weight", heads)
        if post_norms or sinks:
            model.add(block + "post_attention_norm.weight", embd)
        if ffn_norm:
            model.add(block + "ffn_norm.weight", embd)
            if biases:
                model.add(block + "ffn_norm.bias", embd)
        if experts:
            _experts(model, block, embd, ff_expert or ff, experts, ff_shared, biased=sinks)
        else:
            _feed_forward(model, block, embd, ff, gate, fused_up, biases)
        if post_norms:
            model.add(block + "post_ffw_norm.weight", embd)
    return model


def _attention(
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


def _feed_forward(
    model: Sketch, block: str, embd: int, ff: int, gate: bool, fused_up: bool, bias: bool
) -> None:
    if gate and not fused_up:
        model.add(block + "ffn_gate.weight", embd, ff)
    model.add(block + "ffn_up.weight", embd, 2 * ff if fused_up else ff)
    model.add(block + "ffn_down.weight", ff, embd)
    if bias:
        model.add(block + "ffn_up.bias", ff)
        model.add(block + "ffn_down.bias", embd)


def _experts(
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


def qwen2moe(name: str, layers: int, embd: int, heads: int, ff: int, shared: int) -> Sketch:
    model = dense(
        name, "qwen2moe", layers, embd, heads, heads, ff, 151936,
        experts=60, used=4, ff_expert=ff, ff_shared=shared,
    )  # fmt: skip
    for il in range(layers):
        model.add(f"blk.{il}.ffn_gate_inp_shexp.weight", embd)
    return model


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
            _feed_forward(model, block, embd, ff, True, False, False)
        else:
            _experts(model, block, embd, ff_expert, experts, ff_expert * shared, biased=False)
    return model


def mamba(name: str, layers: int, embd: int) -> Sketch:
    inner, state, conv, rank, vocab = 2 * embd, 16, 4, embd // 16, 50280
    model = _state_space(name, "mamba", layers, embd, vocab, inner, state, conv, rank, 0)
    for il in range(layers):
        block = f"blk.{il}."
        model.add(block + "attn_norm.weight", embd)
        _mamba1(model, block, embd, inner, state, conv, rank)
    return model


def mamba2(name: str, layers: int, embd: int) -> Sketch:
    inner, state, conv, groups, vocab = 2 * embd, 128, 4, 1, 50288
    heads = inner // 64
    model = _state_space(name, "mamba2", layers, embd, vocab, inner, state, conv, heads, groups)
    for il in range(layers):
        block = f"blk.{il}."
        model.add(block + "attn_norm.weight", embd)
        _mamba2(model, block, embd, inner, state, conv, heads, groups)
    return model


def _state_space(
    name: str, arch: str, layers: int, embd: int, vocab: int, inner: int, state: int, conv: int,
    rank: int, groups: int,
) -> Sketch:  # fmt: skip
    keys: dict[str, object] = {
        "vocab_size": vocab, "context_length": 1048576, "embedding_length": embd,
        "block_count": layers, "feed_forward_length": 0, "attention.head_count": 0,
        "attention.layer_norm_rms_epsilon": 1e-5, "ssm.conv_kernel": conv,
        "ssm.inner_size": inner, "ssm.state_size": state, "ssm.time_step_rank": rank,
    }  # fmt: skip
    if groups:
        keys["ssm.group_count"] = groups
    model = Sketch(name, arch, keys)
    model.add("token_embd.weight", embd, vocab)
    model.add("output_norm.weight", embd)
    return model


def _mamba1(
    model: Sketch, block: str, embd: int, inner: int, state: int, conv: int, rank: int
) -> None:
    model.add(block + "ssm_in.weight", embd, 2 * inner)
    model.add(block + "ssm_conv1d.weight", conv, inner, kind="F32")
    model.add(block + "ssm_conv1d.bias", inner)
    model.add(block + "ssm_x.weight", inner, rank + 2 * state)
    model.add(block + "ssm_dt.weight", rank, inner, kind="F32")
    model.add(block + "ssm_dt.bias", inner)
    model.add(block + "ssm_a", state, inner, kind="F32")
    model.add(block + "ssm_d", inner)
    model.add(block + "ssm_out.weight", inner, embd)


def _mamba2(
    model: Sketch, block: str, embd: int, inner: int, state: int, conv: int, heads: int,
    groups: int,
) -> None:  # fmt: skip
    mixed = inner + 2 * groups * state
    model.add(block + "ssm_in.weight", embd, inner + mixed + heads)
    model.add(block + "ssm_conv1d.weight", conv, mixed, kind="F32")
    model.add(block + "ssm_conv1d.bias", mixed)
    model.add(block + "ssm_dt.bias", heads)
    model.add(block + "ssm_a", 1, heads, kind="F32")
    model.add(block + "ssm_d", 1, heads, kind="F32")
    model.add(block + "ssm_norm.weight", inner // groups, groups, kind="F32")
    model.add(block + "ssm_out.weight", inner, embd)


def rwkv6(name: str, layers: int, embd: int) -> Sketch:
    ff, head, mix, decay, vocab = int(embd * 3.5), 64, 32, 64, 65536
    keys: dict[str, object] = {
        "vocab_size": vocab, "context_length": 1048576, "embedding_length": embd,
        "block_count": layers, "feed_forward_length": ff, "attention.head_count": 0,
        "attention.layer_norm_epsilon": 1e-5, "wkv.head_size": head,
        "time_mix_extra_dim": mix, "time_decay_extra_dim": decay, "rescale_every_n_layers": 6,
    }  # fmt: skip
    model = Sketch(name, "rwkv6", keys)
    _rwkv_ends(model, embd, vocab)
    for il in range(layers):
        block = f"blk.{il}."
        _rwkv_norms(model, block, embd)
        model.add(block + "time_mix_w1.weight", embd, mix * 5)
        model.add(block + "time_mix_w2.weight", mix, embd, 5)
        model.add(block + "time_mix_lerp_x.weight", embd, 1, 1, kind="F32")
        model.add(block + "time_mix_lerp_fused.weight", embd, 1, 1, 5, kind="F32")
        model.add(block + "time_mix_first.weight", head, embd // head, kind="F32")
        model.add(block + "time_mix_decay.weight", embd)
        model.add(block + "time_mix_decay_w1.weight", embd, decay)
        model.add(block + "time_mix_decay_w2.weight", decay, embd)
        for part in ("key", "value", "receptance", "gate", "output"):
            model.add(block + f"time_mix_{part}.weight", embd, embd)
        model.add(block + "time_mix_ln.weight", embd)
        model.add(block + "time_mix_ln.bias", embd)
        model.add(block + "channel_mix_lerp_k.weight", embd, 1, 1, kind="F32")
        model.add(block + "channel_mix_lerp_r.weight", embd, 1, 1, kind="F32")
        model.add(block + "channel_mix_key.weight", embd, ff)
        model.add(block + "channel_mix_value.weight", ff, embd)
        model.add(block + "channel_mix_receptance.weight", embd, embd)
    return model


def rwkv7(name: str, layers: int, embd: int) -> Sketch:
    ff, vocab, decay, rate, mix, gate = 4 * embd, 65536, 64, 64, 32, 128
    keys: dict[str, object] = {
        "vocab_size": vocab, "context_length": 1048576, "embedding_length": embd,
        "block_count": layers, "feed_forward_length": ff, "attention.head_count": 0,
        "attention.layer_norm_epsilon": 1e-5, "wkv.head_size": 64,
        "attention.decay_lora_rank": decay, "attention.iclr_lora_rank": rate,
        "attention.value_residual_mix_lora_rank": mix, "attention.gate_lora_rank": gate,
    }  # fmt: skip
    model = Sketch(name, "rwkv7", keys)
    _rwkv_ends(model, embd, vocab)
    for il in range(layers):
        block = f"blk.{il}."
        _rwkv_norms(model, block, embd)
        for part, rank in (("w", decay), ("a", rate), ("v", rate if il == 0 else mix)):
            model.add(block + f"time_mix_{part}0.weight", embd)
            model.add(block + f"time_mix_{part}1.weight", embd, rank)
            model.add(block + f"time_mix_{part}2.weight", rank, embd)
        model.add(block + "time_mix_g1.weight", embd, gate)
        model.add(block + "time_mix_g2.weight", gate, embd)
        model.add(block + "time_mix_lerp_fused.weight", embd, 1, 1, 6, kind="F32")
        for part in ("k_k", "k_a", "r_k"):
            model.add(block + f"time_mix_{part}.weight", embd)
        for part in ("key", "value", "receptance", "output"):
            model.add(block + f"time_mix_{part}.weight", embd, embd)
        model.add(block + "time_mix_ln.weight", embd)
        model.add(block + "time_mix_ln.bias", embd)
        model.add(block + "channel_mix_lerp_k.weight", embd, 1, 1, kind="F32")
        model.add(block + "channel_mix_key.weight", embd, ff)
        model.add(block + "channel_mix_value.weight", ff, embd)
    return model


def _rwkv_ends(model: Sketch, embd: int, vocab: int) -> None:
    model.add("token_embd.weight", embd, vocab)
    for part in ("token_embd_norm", "output_norm"):
        model.add(part + ".weight", embd)
        model.add(part + ".bias", embd)
    model.add("output.weight", embd, vocab)


def _rwkv_norms(model: Sketch, block: str, embd: int) -> None:
    for part in ("attn_norm", "attn_norm_2"):
        model.add(block + part + ".weight", embd)
        model.add(block + part + ".bias", embd)


def jamba(name: str, layers: int, embd: int, heads: int, kv: int, ff: int) -> Sketch:
    inner, state, conv, rank, vocab = 2 * embd, 16, 4, embd // 16, 65536
    pattern = [kv if il % 8 == 4 else 0 for il in range(layers)]
    model = _state_space(name, "jamba", layers, embd, vocab, inner, state, conv, rank, 0)
    model.metadata |= {
        "attention.head_count": heads, "attention.head_count_kv": pattern,
        "feed_forward_length": ff, "context_length": 262144,
    }  # fmt: skip
    for il in range(layers):
        block = f"blk.{il}."
        model.add(block + "attn_norm.weight", embd)
        if pattern[il]:
            _attention(model, block, embd, heads, kv, embd // heads, False, False)
        else:
            _mamba1(model, block, embd, inner, state, conv, rank)
            model.add(block + "ssm_dt_norm.weight", rank)
            model.add(block + "ssm_b_norm.weight", state)
            model.add(block + "ssm_c_norm.weight", state)
        model.add(block + "ffn_norm.weight", embd)
        _feed_forward(model, block, embd, ff, True, False, False)
    return model


def falcon_h1(
    name: str, layers: int, embd: int, heads: int, kv: int, ff: int, inner: int
) -> Sketch:
    state, conv, groups, head, vocab = 256, 4, 1, 128, 65536
    ssm_heads = inner // 64
    model = _state_space(name, "falcon-h1", layers, embd, vocab, inner, state, conv, ssm_heads, 1)
    model.metadata |= {
        "attention.head_count": heads, "attention.head_count_kv": kv,
        "attention.key_length": head, "attention.value_length": head,
        "rope.dimension_count": head, "feed_forward_length": ff,
    }  # fmt: skip
    for il in range(layers):
        block = f"blk.{il}."
        model.add(block + "attn_norm.weight", embd)
        _mamba2(model, block, embd, inner, state, conv, ssm_heads, groups)
        _attention(model, block, embd, heads, kv, head, False, False)
        model.add(block + "ffn_norm", embd)
        _feed_forward(model, block, embd, ff, True, False, False)
    return model


def granite_hybrid(name: str, layers: int, embd: int, heads: int, kv: int, ff: int) -> Sketch:
    inner, state, conv, groups, vocab = 2 * embd, 128, 4, 1, 100352
    ssm_heads = inner // 64
    pattern = [kv if il % 10 == 5 else 0 for il in range(layers)]
    model = _state_space(
        name, "granitehybrid", layers, embd, vocab, inner, state, conv, ssm_heads, groups
    )
    model.metadata |= {
        "attention.head_count": heads, "attention.head_count_kv": pattern,
        "feed_forward_length": ff, "context_length": 131072,
    }  # fmt: skip
    for il in range(layers):
        block = f"blk.{il}."
        model.add(block + "attn_norm.weight", embd)
        if pattern[il]:
            _attention(model, block, embd, heads, kv, embd // heads, False, False)
        else:
            _mamba2(model, block, embd, inner, state, conv, ssm_heads, groups)
        model.add(block + "ffn_norm.weight", embd)
        _feed_forward(model, block, embd, ff, True, False, False)
    return model


def nemotron_h(name: str, layers: int, embd: int, heads: int, kv: int, ff: int) -> Sketch:
    inner, state, conv, groups, head, vocab = 8192, 128, 4, 8, 128, 131072
    ssm_heads = 128
    kinds = [
        "attention" if il % 13 == 7 else ("ssm" if il % 2 == 0 else "ff") for il in range(layers)
    ]
    model = _state_space(
        name, "nemotron_h", layers, embd, vocab, inner, state, conv, ssm_heads, groups
    )
    model.metadata |= {
        "attention.head_count": heads, "context_length": 131072,
        "attention.head_count_kv": [kv if kind == "attention" else 0 for kind in kinds],
        "feed_forward_length": [ff if kind == "ff" else 0 for kind in kinds],
        "attention.key_length": head, "attention.value_length": head,
        "attention.layer_norm_epsilon": 1e-5,
    }  # fmt: skip
    for il, kind in enumerate(kinds):
        block = f"blk.{il}."
        model.add(block + "attn_norm.weight", embd)
        if kind == "ssm":
            _mamba2(model, block, embd, inner, state, conv, ssm_heads, groups)
        elif kind == "attention":
            _attention(model, block, embd, heads, kv, head, False, False)
        else:
            _feed_forward(model, block, embd, ff, False, False, False)
    return model


def lfm2(name: str, layers: int, embd: int, heads: int, kv: int, ff: int) -> Sketch:
    cache, vocab = 3, 65536
    attends = {2, 5, 8, 10, 12, 14}
    pattern = [kv if il in attends else 0 for il in range(layers)]
    model = Sketch(
        name, "lfm2",
        {
            "vocab_size": vocab, "context_length": 128000, "embedding_length": embd,
            "block_count": layers, "feed_forward_length": ff, "attention.head_count": heads,
            "attention.head_count_kv": pattern, "shortconv.l_cache": cache,
            "attention.layer_norm_rms_epsilon": 1e-5,
        },
    )  # fmt: skip
    model.add("token_embd.weight", embd, vocab)
    model.add("token_embd_norm.weight", embd)
    for il in range(layers):
        block = f"blk.{il}."
        model.add(block + "attn_norm.weight", embd)
        model.add(block + "ffn_norm.weight", embd)
        _feed_forward(model, block, embd, ff, True, False, False)
        if pattern[il]:
            model.add(block + "attn_q_norm.weight", embd // heads)
            model.add(block + "attn_k_norm.weight", embd // heads)
            _attention(model, block, embd, heads, kv, embd // heads, False, False)
        else:
            model.add(block + "shortconv.conv.weight", cache, embd, kind="F32")
            model.add(block + "shortconv.in_proj.weight", embd, 3 * embd)
            model.add(block + "shortconv.out_proj.weight", embd, embd)
    return model


def qwen3next(
    name: str, arch: str, layers: int, embd: int, heads: int, kv: int, **moe: int
) -> Sketch:
    """Three of four layers are gated delta nets; `moe` is empty for the dense sibling."""
    head, state, conv, groups, rank, vocab = 256, 128, 4, 16, 32, 151936
    ff = moe.get("ff", 12288)
    key, value = state * groups, state * rank
    model = _state_space(name, arch, layers, embd, vocab, value, state, conv, rank, groups)
    model.metadata |= {
        "attention.head_count": heads, "attention.head_count_kv": kv,
        "attention.key_length": head, "attention.value_length": head,
        "rope.dimension_count": 64, "feed_forward_length": ff, "full_attention_interval": 4,
        "context_length": 262144, "rope.dimension_sections": [11, 11, 10, 0],
    }  # fmt: skip
    if moe:
        model.metadata |= {
            "expert_count": moe["experts"], "expert_used_count": moe["used"],
            "expert_feed_forward_length": moe["ff_expert"],
            "expert_shared_feed_forward_length": moe["ff_expert"],
        }  # fmt: skip
    for il in range(layers):
        block = f"blk.{il}."
        model.add(block + "attn_norm.weight", embd)
        model.add(block + "post_attention_norm.weight", embd)
        if (il + 1) % 4 == 0:
            model.add(block + "attn_q.weight", embd, heads * head * 2)
            model.add(block + "attn_k.weight", embd, kv * head)
            model.add(block + "attn_v.weight", embd, kv * head)
            model.add(block + "attn_output.weight", heads * head, embd)
            model.add(block + "attn_q_norm.weight", head)
            model.add(block + "attn_k_norm.weight", head)
        else:
            model.add(block + "attn_qkv.weight", embd, 2 * key + value)
            model.add(block + "attn_gate.weight", embd, value)
            model.add(block + "ssm_conv1d.weight", conv, 2 * key + value, kind="F32")
            model.add(block + "ssm_dt.bias", rank)
            model.add(block + "ssm_a", rank)
            if arch == "qwen3next":
                model.add(block + "ssm_ba.weight", embd, 2 * rank)
            else:
                model.add(block + "ssm_beta.weight", embd, rank)
                model.add(block + "ssm_alpha.weight", embd, rank)
            model.add(block + "ssm_norm.weight", state)
            model.add(block + "ssm_out.weight", value, embd)
        if moe:
            wide = moe["ff_expert"]
            _experts(model, block, embd, wide, moe["experts"], wide, biased=False)
            model.add(block + "ffn_gate_inp_shexp.weight", embd)
        else:
            _feed_forward(model, block, embd, ff, True, False, False)
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


SKETCHES: dict[str, Callable[[], Sketch]] = {
    "llama-3.2-1b": lambda: dense(
        "llama-3.2-1b", "llama", 16, 2048, 32, 8, 8192, 128256, tied=True
    ),
    "llama-3.2-3b": lambda: dense(
        "llama-3.2-3b", "llama", 28, 3072, 24, 8, 8192, 128256, tied=True
    ),
    "llama-3.1-8b": lambda: dense("llama-3.1-8b", "llama", 32, 4096, 32, 8, 14336, 128256),
    "llama-3.1-70b": lambda: dense("llama-3.1-70b", "llama", 80, 8192, 64, 8, 28672, 128256),
    "llama-2-7b": lambda: dense("llama-2-7b", "llama", 32, 4096, 32, 32, 11008, 32000),
    "tinyllama-1.1b": lambda: dense("tinyllama-1.1b", "llama", 22, 2048, 32, 4, 5632, 32000),
    "mistral-nemo-12b": lambda: dense(
        "mistral-nemo-12b", "llama", 40, 5120, 32, 8, 14336, 131072, head=128
    ),
    "mixtral-8x7b": lambda: dense(
        "mixtral-8x7b", "llama", 32, 4096, 32, 8, 14336, 32000, experts=8, used=2
    ),
    "qwen2.5-0.5b": lambda: dense("qwen2.5-0.5b", "qwen2", 24, 896, 14, 2, 4864, 151936, tied=True),
    "qwen2.5-7b": lambda: dense("qwen2.5-7b", "qwen2", 28, 3584, 28, 4, 18944, 152064),
    "qwen2.5-32b": lambda: dense("qwen2.5-32b", "qwen2", 64, 5120, 40, 8, 27648, 152064),
    "qwen3-0.6b": lambda: qwen3("qwen3-0.6b", 28, 1024, 16, 8, 3072, True),
    "qwen3-8b": lambda: qwen3("qwen3-8b", 36, 4096, 32, 8, 12288, False),
    "qwen3-32b": lambda: qwen3("qwen3-32b", 64, 5120, 64, 8, 25600, False),
    "qwen3-30b-a3b": lambda: dense(
        "qwen3-30b-a3b",
        "qwen3moe",
        48,
        2048,
        32,
        4,
        6144,
        151936,
        head=128,
        qk_norm=True,
        experts=128,
        used=8,
        ff_expert=768,
    ),
    "qwen1.5-moe-a2.7b": lambda: qwen2moe("qwen1.5-moe-a2.7b", 24, 2048, 16, 1408, 5632),
    "gemma-7b": lambda: dense(
        "gemma-7b", "gemma", 28, 3072, 16, 16, 24576, 256000, head=256, tied=True
    ),
    "gemma-2-2b": lambda: gemma2("gemma-2-2b", 26, 2304, 8, 4, 9216, 256),
    "gemma-2-9b": lambda: gemma2("gemma-2-9b", 42, 3584, 16, 8, 14336, 256),
    "gemma-3-270m": lambda: gemma3("gemma-3-270m", 18, 640, 4, 1, 2048, 256, 512),
    "gemma-3-4b": lambda: gemma3("gemma-3-4b", 34, 2560, 8, 4, 10240, 256, 1024),
    "gemma-3-27b": lambda: gemma3("gemma-3-27b", 62, 5376, 32, 16, 21504, 128, 1024),
    "phi-3-mini": lambda: dense(
        "phi-3-mini",
        "phi3",
        32,
        3072,
        32,
        32,
        8192,
        32064,
        fused_qkv=True,
        fused_up=True,
        metadata={"attention.sliding_window": 2047},
    ),
    "phi-4-14b": lambda: dense(
        "phi-4-14b",
        "phi3",
        40,
        5120,
        40,
        10,
        17920,
        100352,
        fused_qkv=True,
        fused_up=True,
    ),
    "command-r7b": lambda: dense(
        "command-r7b",
        "cohere2",
        32,
        4096,
        32,
        8,
        14336,
        256000,
        tied=True,
        ffn_norm=False,
        metadata={"attention.sliding_window": 4096, "logit_scale": 0.25},
    ),
    "command-r-35b": lambda: dense(
        "command-r-35b",
        "command-r",
        40,
        8192,
        64,
        64,
        22528,
        256000,
        tied=True,
        ffn_norm=False,
        metadata={"logit_scale": 0.0625},
    ),
    "gpt-oss-20b": lambda: gpt_oss("gpt-oss-20b", 24, 32),
    "gpt-oss-120b": lambda: gpt_oss("gpt-oss-120b", 36, 128),
    "deepseek-v2-lite": lambda: mla("deepseek-v2-lite", 27, 2048, 16, 10944, 64, 6, 1408),
    "deepseek-v3": lambda: mla(
        "deepseek-v3",
        61,
        7168,
        128,
        18432,
        256,
        8,
        2048,
        q_rank=1536,
        dense_lead=3,
        shared=1,
        vocab=129280,
    ),
    "mamba-130m": lambda: mamba("mamba-130m", 24, 768),
    "mamba-2.8b": lambda: mamba("mamba-2.8b", 64, 2560),
    "mamba2-1.3b": lambda: mamba2("mamba2-1.3b", 48, 2048),
    "rwkv6-1.6b": lambda: rwkv6("rwkv6-1.6b", 24, 2048),
    "rwkv7-1.5b": lambda: rwkv7("rwkv7-1.5b", 24, 2048),
    "jamba-3b": lambda: jamba("jamba-3b", 28, 2560, 20, 1, 8192),
    "falcon-h1-1.5b": lambda: falcon_h1("falcon-h1-1.5b", 24, 2048, 8, 2, 4096, 3072),
    "granite-4-h-micro": lambda: granite_hybrid("granite-4-h-micro", 40, 2048, 32, 8, 8192),
    "nemotron-h-8b": lambda: nemotron_h("nemotron-h-8b", 52, 4096, 32, 8, 21504),
    "lfm2-1.2b": lambda: lfm2("lfm2-1.2b", 16, 2048, 32, 8, 8192),
    "qwen3-next-80b": lambda: qwen3next(
        "qwen3-next-80b",
        "qwen3next",
        48,
        2048,
        16,
        2,
        ff=5120,
        experts=512,
        used=10,
        ff_expert=512,
    ),
    "qwen3.5-9b": lambda: qwen3next("qwen3.5-9b", "qwen35", 32, 4096, 16, 4),
    "bge-base": lambda: bert("bge-base", "bert", 12, 768, 12, 3072),
    "nomic-embed": lambda: bert("nomic-embed", "nomic-bert", 12, 768, 12, 3072),
    "olmo2-7b": lambda: dense(
        "olmo2-7b",
        "olmo2",
        32,
        4096,
        32,
        32,
        11008,
        100352,
        qk_norm=True,
        full_norms=True,
        post_norms=True,
        attn_norm=False,
        ffn_norm=False,
    ),
    "olmoe-7b": lambda: dense(
        "olmoe-7b",
        "olmoe",
        16,
        2048,
        16,
        16,
        1024,
        50304,
        experts=64,
        used=8,
        qk_norm=True,
        full_norms=True,
    ),
    "starcoder2-7b": lambda: dense(
        "starcoder2-7b",
        "starcoder2",
        32,
        4608,
        36,
        4,
        18432,
        49152,
        gate=False,
        biases=True,
    ),
    "gpt2-xl": lambda: _gpt2("gpt2-xl", 48, 1600, 25, 6400),
    "granite-3-8b": lambda: dense(
        "granite-3-8b",
        "granite",
        40,
        4096,
        32,
        8,
        12800,
        49155,
        tied=True,
        metadata={"logit_scale": 8.0},
    ),
    "smollm3-3b": lambda: dense("smollm3-3b", "smollm3", 36, 2048, 16, 4, 11008, 128256, tied=True),
    "glm-4-9b": lambda: dense(
        "glm-4-9b",
        "glm4",
        40,
        4096,
        32,
        2,
        13696,
        151552,
        fused_up=True,
        post_norms=True,
    ),
    "exaone-4-1.2b": lambda: dense(
        "exaone-4-1.2b",
        "exaone4",
        30,
        2048,
        32,
        8,
        4096,
        102400,
        tied=True,
        qk_norm=True,
        post_norms=True,
        attn_norm=False,
        ffn_norm=False,
    ),
    "minimax-m2": lambda: _minimax_m2(),
}
"""Name to sketch: 53 models of 32 architectures, 0.1 to 400 GB."""


def _gpt2(name: str, layers: int, embd: int, heads: int, ff: int) -> Sketch:
    model = dense(
        name, "gpt2", layers, embd, heads, heads, ff, 50257, gate=False, biases=True,
        fused_qkv=True, tied=True, context=1024,
    )  # fmt: skip
    model.add("position_embd.weight", embd, 1024, kind="F32")
    return model


def _minimax_m2() -> Sketch:
    model = dense(
        "minimax-m2", "minimax-m2", 62, 3072, 48, 8, 1536, 200064, head=128, experts=256, used=8,
        ff_expert=1536, qk_norm=True, full_norms=True, context=196608,
        metadata={"expert_gating_func": 2},
    )  # fmt: skip
    for il in range(62):
        model.add(f"blk.{il}.exp_probs_b.bias", 256)
    return model
