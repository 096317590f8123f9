"""What one llama.cpp instance is started with, as a frozen value that travels to the worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class LlamaCppParams:
    """Parameters of one worker. Tokens, bytes, seconds.

    `context_window` is the most tokens one sequence may hold; `kv_tokens` the cells all sequences
    share (unified KV), `context_window * slots` when None: smaller over-commits, and the worker
    then parks idle and, if it must, running background sequences. `tensor_split` is always
    passed on when given, because llama.cpp otherwise splits by free memory at that moment.
    """

    model_path: Path
    context_window: int = 4096
    slots: int = 4
    kv_tokens: int | None = None
    gpu_layers: int = 0
    tensor_split: tuple[float, ...] = ()
    main_gpu: int = 0
    promised_bytes: tuple[int, ...] = ()
    """What may be allocated on each card that this process sees, in order; empty: not known."""
    kv_type: str = "f16"
    """Element type of K and V: f16, bf16, f32, q8_0, q5_1, q5_0, q4_1 or q4_0."""
    threads: int = 0
    """0: one per core that this process may run on."""
    batch_tokens: int = 2048
    ubatch_tokens: int = 512
    chat_template: str | None = None
    """Jinja source used in place of the model's own."""
    adapters: Mapping[str, Path] = field(default_factory=dict)
    embeddings: bool = False
    park_dir: Path | None = None
    park_ram_bytes: int = 256 * MIB
    park_disk_bytes: int = 2048 * MIB
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the worker's clean environment, e.g. CUDA_VISIBLE_DEVICES."""
    start_timeout_s: float = 300.0
    stall_timeout_s: float = 20.0
    """No sign of progress for this long, with work to do, counts as a hang."""
    stop_grace_s: float = 10.0
    python: str | None = None
    """The interpreter of the worker; None is this one."""

    @property
    def total_kv_tokens(self) -> int:
        return self.kv_tokens if self.kv_tokens is not None else self.context_window * self.slots

    def to_json(self) -> dict[str, Any]:
        body = asdict(self)
        body["model_path"] = str(self.model_path)
        body["park_dir"] = None if self.park_dir is None else str(self.park_dir)
        body["adapters"] = {name: str(path) for name, path in self.adapters.items()}
        body["tensor_split"] = list(self.tensor_split)
        body["promised_bytes"] = list(self.promised_bytes)
        body["environment"] = dict(self.environment)
        return body

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> LlamaCppParams:
        park_dir = body["park_dir"]
        return LlamaCppParams(
            **{
                **body,
                "model_path": Path(body["model_path"]),
                "park_dir": None if park_dir is None else Path(park_dir),
                "adapters": {name: Path(path) for name, path in body["adapters"].items()},
                "tensor_split": tuple(body["tensor_split"]),
                "promised_bytes": tuple(body["promised_bytes"]),
            }
        )
