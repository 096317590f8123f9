"""What one vLLM server is started with, as a frozen value, and the command line it makes.

Flags and variables: vLLM 0.32, `vllm serve --help=all` and `vllm/envs.py`. KV bytes are an order,
not a share of what is free (`gpu/vllm.py` says why).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

LEAST_SHARE = "0.01"
"""Of a card's memory that must be free at the start. With KV bytes ordered the share says nothing
else (`request_memory` in `vllm/v1/worker/utils.py`), and what is free is the ledger's to know: with
the default of 0.92 no server would start beside another model."""

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_DO_NOT_TRACK": "1",
}
"""A server of ours asks nobody for files and tells nobody that it runs."""


@dataclass(frozen=True, slots=True)
class VllmParams:
    """`cards` are UUIDs, one for each tensor-parallel rank; none: the CPU build. `kv_bytes` is the
    KV cache of one rank. `command` starts a server and takes vLLM's arguments after its own."""

    name: str
    folder: Path
    command: tuple[str, ...] = ("vllm", "serve")
    extra_args: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    context_window: int = 4096
    slots: int = 4
    kv_bytes: int = 0
    kv_fp8: bool = False
    cards: tuple[str, ...] = ()
    embeddings: bool = False
    max_output_tokens: int | None = None
    start_timeout_s: float = 900.0
    stop_grace_s: float = 10.0
    quiet_s: float = 30.0
    """After so many seconds without an answer of any kind, one token is asked for."""
    canary_s: float = 60.0
    """It may take this long: the server may be in the middle of somebody's long prompt."""

    def argv(self, port: int) -> list[str]:
        """`serve` takes the model as its argument, the module behind it as `--model`."""
        takes_model = self.command[-1] == "serve"
        model = [str(self.folder)] if takes_model else ["--model", str(self.folder)]
        argv = [
            *self.command,
            *model,
            *("--served-model-name", self.name),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--max-model-len", str(self.context_window)),
            *("--max-num-seqs", str(self.slots)),
            "--enable-prefix-caching",
            *("--scheduling-policy", "priority"),
            "--enable-prompt-tokens-details",
            *("--structured-outputs-config", '{"backend":"guidance"}'),
        ]
        if self.kv_bytes:
            argv += ["--kv-cache-memory-bytes", str(self.kv_bytes)]
        if self.cards:
            argv += ["--tensor-parallel-size", str(len(self.cards))]
            argv += ["--gpu-memory-utilization", LEAST_SHARE]
        else:
            argv.append("--enforce-eager")
        if self.kv_fp8:
            argv += ["--kv-cache-dtype", "fp8"]
        if self.embeddings:
            argv += ["--runner", "pooling"]
        return [*argv, *self.extra_args]

    def child_environment(self, secret: str) -> dict[str, str]:
        """Over the allow-listed environment. The secret is not on the command line, where every
        user of the machine could read it."""
        return {
            **QUIET,
            "VLLM_API_KEY": secret,
            "CUDA_VISIBLE_DEVICES": ",".join(self.cards),
            **self.environment,
        }
