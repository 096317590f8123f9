"""Really loads a model on a card, runs one full batch through it, and waits to be ended.

Reads one JSON question (the dry run's) from its first argument; says `loaded`, then `worked`.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import llama_cpp as lib


def main() -> int:
    question: dict[str, Any] = json.loads(sys.argv[1])
    lib.llama_backend_init()
    model_params = lib.llama_model_default_params()
    model_params.n_gpu_layers = question["gpu_layers"]
    split = (ctypes.c_float * lib.llama_max_devices())(*question["tensor_split"])
    model_params.tensor_split = split
    model = lib.llama_model_load_from_file(question["path"].encode(), model_params)
    params = lib.llama_context_default_params()
    for name in ("n_ctx", "n_seq_max", "type_k", "type_v", "kv_unified", "swa_full"):
        setattr(params, name, question[name])
    for name in ("n_batch", "n_ubatch", "n_outputs_max"):
        setattr(params, name, question[name])
    params.flash_attn_type = 1 if question["flash_attention"] else 0
    context = lib.llama_init_from_model(model, params)
    if not context:
        return 1
    print("loaded", flush=True)
    sys.stdin.readline()
    tokens = min(question["n_ubatch"], question["n_ctx"])
    batch = lib.llama_batch_init(tokens, 0, 1)
    batch.n_tokens = tokens
    for index in range(tokens):
        batch.token[index] = 0
        batch.pos[index] = index
        batch.n_seq_id[index] = 1
        batch.seq_id[index][0] = 0
        batch.logits[index] = index == tokens - 1
    lib.llama_decode(context, batch)
    lib.llama_synchronize(context)
    print("worked", flush=True)
    sys.stdin.readline()
    return 0


if __name__ == "__main__":
    sys.exit(main())
