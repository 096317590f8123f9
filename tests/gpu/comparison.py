"""Our estimate, and the peers' formulae, beside llama.cpp's own dry run of the same model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.gpu.estimate import estimate
from appliance.gpu.oracle import question
from appliance.gpu.shape import read_shape
from appliance.gpu.types import KvType, ModelShape, PlanParams, Term
from tests.gpu.sketches.catalogue import SKETCHES
from tests.gpu.sparse import write

SETTINGS: dict[str, PlanParams] = {
    "4k": PlanParams(4096, n_batch=2048),
    "8k x4": PlanParams(8192, 4, n_batch=2048),
    "8k x4 q8_0": PlanParams(8192, 4, kv_type=KvType.Q8_0, n_batch=2048),
    "16k x8 split streams": PlanParams(16384, 8, is_unified=False, n_batch=2048),
    "32k x2 ubatch 1024, full window": PlanParams(
        32768, 2, n_ubatch=1024, n_batch=2048, swa_full=True
    ),
    "128k x16": PlanParams(131072, 16, n_batch=2048),
    "8k no flash attention, all logits": PlanParams(
        8192, n_outputs_max=512, flash_attention=False, n_batch=2048
    ),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One model in one setting; bytes."""

    model: str
    architecture: str
    setting: str
    real_weights: int
    real_cache: int
    real_total: int
    our_weights: int
    our_cache: int
    our_total: int
    peers: dict[str, int]

    @property
    def error(self) -> float:
        return (self.our_total - self.real_total) / self.real_total

    def peer_error(self, peer: str) -> float:
        return (self.peers[peer] - self.real_total) / self.real_total

    @property
    def is_within(self) -> bool:
        """3 % or 96 MiB, and never under by more than 1 %."""
        off = self.our_total - self.real_total
        is_near = abs(off) <= max(96 << 20, 0.03 * self.real_total)
        return is_near and off >= -0.01 * self.real_total


def compare(name: str, folder: Path, settings: Sequence[str]) -> list[Row]:
    """One dry-run process per model, all its settings asked in turn."""
    path = write(SKETCHES[name](), folder)
    plans = [(setting, SETTINGS[setting]) for setting in settings]
    asked = "".join(json.dumps(question(path, plan)) + "\n" for _, plan in plans)
    done = subprocess.run(
        [sys.executable, "-m", "appliance.engines.llamacpp.dry_run"],
        input=asked,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=120,
        check=True,
    )
    shape = read_shape(path)
    rows: list[Row] = []
    for (setting, plan), line in zip(plans, done.stdout.splitlines(), strict=True):
        real = json.loads(line)
        assert "error" not in real, f"{name} {setting}: {real}"
        ours = estimate(shape, plan)
        cache = real["kv_bytes"] + real["state_bytes"]
        scratch = sum(real["compute"].values()) + real["output_bytes"]
        rows.append(
            Row(
                name,
                shape.architecture,
                setting,
                real["model_bytes"],
                cache,
                real["model_bytes"] + cache + scratch,
                ours.total_of(Term.WEIGHTS),
                ours.total_of(Term.KV, Term.STATE),
                ours.total_bytes,
                {peer: formula(shape, plan) for peer, formula in PEERS.items()},
            )
        )
    path.unlink()
    return rows


def ollama(shape: ModelShape, plan: PlanParams) -> int:
    """File size and f16 KV of the fewest KV heads at `n_embd / n_head`; no compute buffer.

    After `llm/llama_server.go` and `server/sched.go` as of August 2026, read, not copied."""
    heads = max(shape.n_head, 1)
    fewest = min((layer.k_width for layer in shape.layers if layer.k_width), default=0)
    head_kv = fewest // max(shape.parameters["key_length"], 1)
    per_layer = 2 * plan.n_ctx * (shape.n_embd // heads) * head_kv * 2
    return shape.file_bytes + per_layer * shape.n_layer


def local_ai(shape: ModelShape, plan: PlanParams) -> int:
    """File size and 2 %, twice, and 150 MB; KV without a layer count.

    After `pkg/vram/estimate.go` as of August 2026, read, not copied."""
    width = 1 if plan.kv_type is KvType.Q8_0 else 2
    factor = shape.n_head_kv if shape.n_head_kv and shape.n_head else shape.n_layer
    cache = width * shape.n_embd * factor * plan.n_ctx
    return shape.file_bytes + cache + int(0.04 * shape.file_bytes + 0.15e9)


PEERS: dict[str, Callable[[ModelShape, PlanParams], int]] = {
    "ollama": ollama,
    "local_ai": local_ai,
}
