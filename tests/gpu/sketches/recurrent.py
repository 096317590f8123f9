"""State-space models, RWKV, and hybrids of recurrence and attention."""

from __future__ import annotations

from tests.gpu.sketches.transformer import add_attention, add_experts, add_feed_forward
from tests.gpu.sparse import Sketch


def mamba(name: str, layers: int, embd: int) -> Sketch:
    inner, state, conv, rank, vocab = 2 * embd, 16, 4, embd // 16, 50280
    model = state_space(name, "mamba", layers, embd, vocab, inner, state, conv, rank, 0)
    for il in range(layers):
        block = f"blk.{il}."
        model.add(block + "attn_norm.weight", embd)
        add_mamba1(model, block, embd, inner, state, conv, rank)
    return model


def mamba2(name: str, layers: int, embd: int) -> Sketch:
    inner, state, conv, groups, vocab = 2 * embd, 128, 4, 1, 50288
    heads = inner // 64
    model = state_space(name, "mamba2", layers, embd, vocab, inner, state, conv, heads, groups)
    for il in range(layers):
        block = f"blk.{il}."
        model.add(block + "attn_norm.weight", embd)
        add_mamba2(model, block, embd, inner, state, conv, heads, groups)
    return model


def state_space(
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


def add_mamba1(
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


def add_mamba2(
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
    model = state_space(name, "jamba", layers, embd, vocab, inner, state, conv, rank, 0)
    model.metadata |= {
        "attention.head_count": heads, "attention.head_count_kv": pattern,
        "feed_forward_length": ff, "context_length": 262144,
    }  # fmt: skip
    for il in range(layers):
        block = f"blk.{il}."
        model.add(block + "attn_norm.weight", embd)
        if pattern[il]:
            add_attention(model, block, embd, heads, kv, embd // heads, False, False)
        else:
            add_mamba1(model, block, embd, inner, state, conv, rank)
            model.add(block + "ssm_dt_norm.weight", rank)
            model.add(block + "ssm_b_norm.weight", state)
            model.add(block + "ssm_c_norm.weight", state)
        model.add(block + "ffn_norm.weight", embd)
        add_feed_forward(model, block, embd, ff, True, False, False)
    return model


def falcon_h1(
    name: str, layers: int, embd: int, heads: int, kv: int, ff: int, inner: int
) -> Sketch:
    state, conv, groups, head, vocab = 256, 4, 1, 128, 65536
    ssm_heads = inner // 64
    model = state_space(name, "falcon-h1", layers, embd, vocab, inner, state, conv, ssm_heads, 1)
    model.metadata |= {
        "attention.head_count": heads, "attention.head_count_kv": kv,
        "attention.key_length": head, "attention.value_length": head,
        "rope.dimension_count": head, "feed_forward_length": ff,
    }  # fmt: skip
    for il in range(layers):
        block = f"blk.{il}."
        model.add(block + "attn_norm.weight", embd)
        add_mamba2(model, block, embd, inner, state, conv, ssm_heads, groups)
        add_attention(model, block, embd, heads, kv, head, False, False)
        model.add(block + "ffn_norm", embd)
        add_feed_forward(model, block, embd, ff, True, False, False)
    return model


def granite_hybrid(name: str, layers: int, embd: int, heads: int, kv: int, ff: int) -> Sketch:
    inner, state, conv, groups, vocab = 2 * embd, 128, 4, 1, 100352
    ssm_heads = inner // 64
    pattern = [kv if il % 10 == 5 else 0 for il in range(layers)]
    model = state_space(
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
            add_attention(model, block, embd, heads, kv, embd // heads, False, False)
        else:
            add_mamba2(model, block, embd, inner, state, conv, ssm_heads, groups)
        model.add(block + "ffn_norm.weight", embd)
        add_feed_forward(model, block, embd, ff, True, False, False)
    return model


def nemotron_h(name: str, layers: int, embd: int, heads: int, kv: int, ff: int) -> Sketch:
    inner, state, conv, groups, head, vocab = 8192, 128, 4, 8, 128, 131072
    ssm_heads = 128
    kinds = [
        "attention" if il % 13 == 7 else ("ssm" if il % 2 == 0 else "ff") for il in range(layers)
    ]
    model = state_space(
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
            add_mamba2(model, block, embd, inner, state, conv, ssm_heads, groups)
        elif kind == "attention":
            add_attention(model, block, embd, heads, kv, head, False, False)
        else:
            add_feed_forward(model, block, embd, ff, False, False, False)
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
        add_feed_forward(model, block, embd, ff, True, False, False)
        if pattern[il]:
            model.add(block + "attn_q_norm.weight", embd // heads)
            model.add(block + "attn_k_norm.weight", embd // heads)
            add_attention(model, block, embd, heads, kv, embd // heads, False, False)
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
    model = state_space(name, arch, layers, embd, vocab, value, state, conv, rank, groups)
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
            add_experts(model, block, embd, wide, moe["experts"], wide, biased=False)
            model.add(block + "ffn_gate_inp_shexp.weight", embd)
        else:
            add_feed_forward(model, block, embd, ff, True, False, False)
    return model
