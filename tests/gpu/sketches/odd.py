"""Models whose memory follows rules of their own: shared caches, forced windows, draft heads."""

from __future__ import annotations

from tests.gpu.sketches.recurrent import state_space
from tests.gpu.sketches.transformer import add_experts, add_feed_forward, dense
from tests.gpu.sparse import Sketch


def gemma3n() -> Sketch:
    """Thirty layers of which the last ten read the caches of layers 18 and 19."""
    layers, embd, alt, streams, rank, vocab = 30, 2048, 256, 4, 64, 262144
    model = dense(
        "gemma-3n-e2b", "gemma3n", layers, embd, 8, 2, 8192, vocab, head=256, tied=True,
        qk_norm=True, post_norms=True, metadata={"attention.sliding_window": 512},
    )  # fmt: skip
    model.add("altup_proj.weight", embd, embd, streams - 1)
    model.add("altup_unembd_proj.weight", embd, embd, streams - 1)
    model.add("per_layer_token_embd.weight", alt * layers, vocab)
    model.add("per_layer_model_proj.weight", embd, alt * layers)
    model.add("per_layer_proj_norm.weight", alt)
    for il in range(layers):
        block = f"blk.{il}."
        model.add(block + "inp_gate.weight", embd, alt)
        model.add(block + "proj.weight", alt, embd)
        model.add(block + "post_norm.weight", embd)
        model.add(block + "altup_correct_coef.weight", streams, streams, kind="F32")
        model.add(block + "altup_correct_scale.weight", embd)
        model.add(block + "altup_predict_coef.weight", streams, streams * streams, kind="F32")
        model.add(block + "altup_router.weight", embd, streams)
        model.add(block + "altup_router_norm.weight", embd)
        model.add(block + "laurel_l.weight", embd, rank)
        model.add(block + "laurel_r.weight", rank, embd, kind="F16")
        model.add(block + "laurel_post_norm.weight", embd)
    return model


def gemma4() -> Sketch:
    """Full layers have wider heads than windowed ones, which the file lists."""
    layers, embd, heads, kv, full, window = 48, 3840, 16, 8, 512, 256
    windowed = [il % 6 != 5 for il in range(layers)]
    model = Sketch(
        "gemma-4-12b", "gemma4",
        {
            "vocab_size": 262144, "context_length": 262144, "embedding_length": embd,
            "block_count": layers, "feed_forward_length": 15360, "attention.head_count": heads,
            "attention.head_count_kv": [kv if w else 1 for w in windowed],
            "attention.key_length": full, "attention.value_length": full,
            "attention.key_length_swa": window, "attention.value_length_swa": window,
            "rope.dimension_count": full, "rope.dimension_count_swa": window,
            "attention.sliding_window": 1024, "attention.sliding_window_pattern": windowed,
            "embedding_length_per_layer_input": 0, "attention.layer_norm_rms_epsilon": 1e-6,
        },
    )  # fmt: skip
    model.add("token_embd.weight", embd, 262144)
    model.add("output_norm.weight", embd)
    model.add("rope_freqs.weight", full // 2)
    for il, is_windowed in enumerate(windowed):
        block, head, groups = (
            f"blk.{il}.",
            window if is_windowed else full,
            kv if is_windowed else 1,
        )
        model.add(block + "attn_norm.weight", embd)
        model.add(block + "attn_q.weight", embd, heads * head)
        model.add(block + "attn_k.weight", embd, groups * head)
        model.add(block + "attn_v.weight", embd, groups * head)
        model.add(block + "attn_output.weight", heads * head, embd)
        model.add(block + "attn_q_norm.weight", head)
        model.add(block + "attn_k_norm.weight", head)
        for part in ("post_attention_norm", "ffn_norm", "post_ffw_norm"):
            model.add(block + part + ".weight", embd)
        add_feed_forward(model, block, embd, 15360, True, False, False)
    return model


def llama4() -> Sketch:
    """Three layers of four see chunks of 8,192 tokens whatever the file says."""
    return dense(
        "llama-4-scout", "llama4", 48, 5120, 40, 8, 16384, 202048, head=128, experts=16, used=1,
        ff_expert=8192, ff_shared=8192, context=10485760,
        metadata={"interleave_moe_layer_step": 1},
    )  # fmt: skip


def smallthinker() -> Sketch:
    """Says a window of 4,096 or any other: the loader takes 4,096."""
    return dense(
        "smallthinker-4b", "smallthinker", 32, 1536, 12, 2, 768, 151936, head=128, experts=32,
        used=4, ff_expert=768, tied=True,
        metadata={"attention.sliding_window": 2048, "expert_gating_func": 2},
    )  # fmt: skip


def small_glm4_moe() -> Sketch:
    """Has a draft block behind its trunk, which is not loaded and caches nothing."""
    layers, embd, experts, wide = 3, 256, 4, 256
    model = dense(
        "small-glm-4.5", "glm4moe", layers, embd, 4, 2, 512, 1024, head=64, ffn_norm=False,
        experts=experts, used=2, ff_expert=wide, ff_shared=wide,
        metadata={"nextn_predict_layers": 1, "leading_dense_block_count": 0,
                  "expert_shared_count": 1, "expert_gating_func": 2},
    )  # fmt: skip
    for il in range(layers):
        model.add(f"blk.{il}.post_attention_norm.weight", embd)
        model.add(f"blk.{il}.exp_probs_b.bias", experts)
    block = f"blk.{layers - 1}."
    model.add(block + "nextn.eh_proj.weight", 2 * embd, embd)
    for part in ("enorm", "hnorm", "shared_head_norm"):
        model.add(block + f"nextn.{part}.weight", embd)
    return model


def kimi_linear() -> Sketch:
    """Three layers of four are delta attention with a state; the fourth has a latent cache."""
    layers, embd, heads, head, rank, rope, nope = 27, 2304, 32, 128, 512, 64, 128
    experts, wide, vocab = 256, 1024, 163840
    kv = [0 if (il + 1) % 4 else 1 for il in range(layers)]
    model = Sketch(
        "kimi-linear-48b", "kimi-linear",
        {
            "vocab_size": vocab, "context_length": 1048576, "embedding_length": embd,
            "block_count": layers, "feed_forward_length": 9216, "attention.head_count": heads,
            "attention.head_count_kv": kv, "attention.key_length": rank + rope,
            "attention.value_length": rank, "attention.key_length_mla": nope + rope,
            "attention.value_length_mla": 128, "attention.kv_lora_rank": rank,
            "rope.dimension_count": rope, "ssm.conv_kernel": 4, "kda.head_dim": head,
            "leading_dense_block_count": 1, "expert_count": experts, "expert_used_count": 8,
            "expert_feed_forward_length": wide, "expert_shared_count": 1,
            "expert_weights_scale": 2.446, "expert_gating_func": 2,
            "attention.layer_norm_rms_epsilon": 1e-5,
        },
    )  # fmt: skip
    model.add("token_embd.weight", embd, vocab)
    model.add("output_norm.weight", embd)
    model.add("output.weight", embd, vocab)
    for il in range(layers):
        block = f"blk.{il}."
        model.add(block + "attn_norm.weight", embd)
        if kv[il]:
            model.add(block + "attn_kv_a_norm.weight", rank)
            model.add(block + "attn_q.weight", embd, heads * (nope + rope))
            model.add(block + "attn_kv_a_mqa.weight", embd, rank + rope)
            model.add(block + "attn_k_b.weight", nope, rank, heads, kind="Q8_0")
            model.add(block + "attn_v_b.weight", rank, 128, heads)
        else:
            for part in ("q", "k", "v"):
                model.add(block + f"attn_{part}.weight", embd, heads * head)
                model.add(block + f"ssm_conv1d_{part}.weight", 4, 1, heads * head, kind="F32")
            model.add(block + "ssm_f_a.weight", embd, head)
            model.add(block + "ssm_f_b.weight", head, heads * head)
            model.add(block + "ssm_beta.weight", embd, heads)
            model.add(block + "ssm_a", 1, heads, kind="F32")
            model.add(block + "ssm_dt.bias", heads * head)
            model.add(block + "ssm_g_a.weight", embd, head)
            model.add(block + "ssm_g_b.weight", head, heads * head)
            model.add(block + "ssm_norm.weight", head)
        model.add(block + "attn_output.weight", heads * 128, embd)
        model.add(block + "ffn_norm.weight", embd)
        if il == 0:
            add_feed_forward(model, block, embd, 9216, True, False, False)
        else:
            add_experts(model, block, embd, wide, experts, wide, biased=False)
            model.add(block + "exp_probs_b.bias", experts)
    return model


def plamo2() -> Sketch:
    layers, embd, heads, kv, head, ff, vocab = 32, 4096, 32, 4, 128, 16384, 100032
    inner, state, conv, ssm_heads = 8192, 64, 4, 64
    pattern = [kv if il % 2 else 0 for il in range(layers)]
    steps = max(64, embd // 16)
    model = state_space(
        "plamo-2-8b", "plamo2", layers, embd, vocab, inner, state, conv, ssm_heads, 0
    )
    model.metadata |= {
        "attention.head_count": heads, "attention.head_count_kv": pattern,
        "attention.key_length": head, "attention.value_length": head,
        "feed_forward_length": ff, "context_length": 32768, "ssm.group_count": 0,
    }  # fmt: skip
    for il in range(layers):
        block = f"blk.{il}."
        model.add(block + "attn_norm.weight", embd)
        if pattern[il]:
            model.add(block + "attn_qkv.weight", embd, (heads + 2 * kv) * head)
            model.add(block + "attn_q_norm.weight", head, heads, kind="F32")
            model.add(block + "attn_k_norm.weight", head, kv, kind="F32")
            model.add(block + "attn_output.weight", heads * head, embd)
        else:
            model.add(block + "ssm_in.weight", embd, 2 * inner)
            model.add(block + "ssm_conv1d.weight", conv, inner, kind="F32")
            model.add(block + "ssm_x.weight", inner, steps + 2 * state)
            model.add(block + "ssm_dt.weight", steps, ssm_heads)
            model.add(block + "ssm_dt.bias", ssm_heads)
            model.add(block + "ssm_a", ssm_heads)
            model.add(block + "ssm_d", ssm_heads)
            model.add(block + "ssm_out.weight", inner, embd)
            model.add(block + "ssm_dt_norm", steps)
            model.add(block + "ssm_b_norm", state)
            model.add(block + "ssm_c_norm", state)
        model.add(block + "post_attention_norm", embd)
        model.add(block + "ffn_norm.weight", embd)
        model.add(block + "ffn_up.weight", embd, 2 * ff)
        model.add(block + "ffn_down.weight", ff, embd)
        model.add(block + "post_ffw_norm", embd)
    return model


def deepseek_v2_old() -> Sketch:
    """Converted before latent attention was absorbed: full keys and values are cached."""
    layers, embd, heads, rank, rope, nope, value = 27, 2048, 16, 512, 64, 128, 128
    model = Sketch(
        "deepseek-v2-lite-unabsorbed", "deepseek2",
        {
            "vocab_size": 102400, "context_length": 163840, "embedding_length": embd,
            "block_count": layers, "feed_forward_length": 10944, "attention.head_count": heads,
            "attention.head_count_kv": heads, "attention.key_length": nope + rope,
            "attention.value_length": value, "attention.kv_lora_rank": rank,
            "rope.dimension_count": rope, "attention.layer_norm_rms_epsilon": 1e-6,
            "leading_dense_block_count": 1, "expert_count": 64, "expert_used_count": 6,
            "expert_feed_forward_length": 1408, "expert_shared_count": 2,
            "expert_weights_scale": 1.0,
        },
    )  # fmt: skip
    model.add("token_embd.weight", embd, 102400)
    model.add("output_norm.weight", embd)
    model.add("output.weight", embd, 102400)
    for il in range(layers):
        block = f"blk.{il}."
        model.add(block + "attn_norm.weight", embd)
        model.add(block + "attn_q.weight", embd, heads * (nope + rope))
        model.add(block + "attn_kv_a_norm.weight", rank)
        model.add(block + "attn_kv_a_mqa.weight", embd, rank + rope)
        model.add(block + "attn_kv_b.weight", rank, heads * (nope + value))
        model.add(block + "attn_output.weight", heads * value, embd)
        model.add(block + "ffn_norm.weight", embd)
        if il == 0:
            add_feed_forward(model, block, embd, 10944, True, False, False)
        else:
            add_experts(model, block, embd, 1408, 64, 2816, biased=False)
    return model
