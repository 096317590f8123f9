"""Writes a GGUF model as a Hugging Face folder of bfloat16 weights: dequantise.py GGUF FOLDER.

Runs in .venv-vllm (scripts/vllm-env). The weights are copied into a model of a fresh configuration,
because the loaded one still says that it is quantised.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = type(loaded)(config)
    fresh.load_state_dict(loaded.state_dict())
    draft = folder.with_name(folder.name + ".new")
    fresh.to(torch.bfloat16).save_pretrained(draft)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(draft)
    draft.rename(folder)
    print(f"{folder}: {sum(path.stat().st_size for path in folder.iterdir()) >> 20} MiB")


if __name__ == "__main__":
    main()
