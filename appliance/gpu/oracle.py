"""llama.cpp's own answer: a dry run in a short-lived process, remembered on disk.

The child (`appliance.engines.llamacpp.dry_run`, started by name: this room imports no engine)
simulates the load on the real backend and tells the compute buffer per device and the cache in
all. We keep its compute buffers and leave weights and cache to the formula, which is exact per
device; where an architecture's cache is not described by the formula, the child's total is
spread over the devices as their layers are. A child that dies (the library aborts on shapes it
refuses) or takes too long is `None`: the formula then stands, with its bounds.

Answers are kept under `folder`, one JSON file each, named by a hash of all that decides them:
the model's content, the parameters, the library's build and the kind of device.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from appliance.gpu.calibration import Calibration, load_key
from appliance.gpu.estimate import estimate, layer_devices
from appliance.gpu.ggml_types import KV_TYPE_IDS
from appliance.gpu.types import HOST, Estimate, ModelShape, PlanParams, Term

DRY_RUN_LIMIT_S = 20.0
"""0.04-0.4 s for most, 2.3 s for a 262k vocabulary on a busy machine; a hybrid with sixteen
sequences touches its states: 7 s."""
MAX_CACHE_FILES = 4096
_CHILD = "appliance.engines.llamacpp.dry_run"
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "HOME", "LANG")


class Oracle:
    """Asks and remembers. `library` and `device_kind` name what the answers hold for (the
    llama-cpp-python build, say, and `cpu` or the cards' names)."""

    def __init__(
        self,
        folder: Path,
        *,
        library: str,
        device_kind: str = "cpu",
        calibration: Calibration | None = None,
        python: str = sys.executable,
        limit_s: float = DRY_RUN_LIMIT_S,
    ) -> None:
        self._folder = folder
        self._environment = f"{library}/{device_kind}"
        self._calibration = calibration or Calibration()
        self._python = python
        self._limit_s = limit_s

    def key(self, model: ModelShape, plan: PlanParams) -> str:
        """The name of an answer: the model, the parameters, the library and the devices."""
        decided = json.dumps(
            [self._environment, model.content_hash, asdict(plan)], sort_keys=True, default=str
        )
        return hashlib.blake2b(decided.encode(), digest_size=16).hexdigest()

    async def estimate(self, path: Path, model: ModelShape, plan: PlanParams) -> Estimate:
        """The formula's estimate with the library's compute buffers; the formula alone when the
        library will not say. Corrected by what was measured for this very load."""
        base = estimate(model, plan, self._calibration)
        key = self.key(model, plan)
        answer = await asyncio.to_thread(self._recall, key)
        if answer is None:
            answer = await self._ask(path, plan)
            if answer is not None:
                await asyncio.to_thread(self._remember, key, answer)
        if answer is not None:
            base = merge(model, plan, base, answer)
        return self._calibration.corrected(load_key(model, plan), base)

    async def _ask(self, path: Path, plan: PlanParams) -> dict[str, Any] | None:
        child = await asyncio.create_subprocess_exec(
            self._python,
            "-m",
            _CHILD,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=_environment(plan),
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(self._limit_s):
                out, _ = await child.communicate(json.dumps(question(path, plan)).encode() + b"\n")
        except TimeoutError:
            return None
        finally:
            if child.returncode is None:
                os.killpg(child.pid, signal.SIGKILL)
                await child.wait()
        if child.returncode != 0:
            return None
        answer = json.loads(out)
        return None if "error" in answer else answer

    def _recall(self, key: str) -> dict[str, Any] | None:
        try:
            answer: dict[str, Any] = json.loads((self._folder / f"{key}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return answer

    def _remember(self, key: str, answer: Mapping[str, Any]) -> None:
        """Written beside and renamed, so that a reader never sees half of it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in kept[: max(len(kept) - MAX_CACHE_FILES + 1, 0)]:
            path.unlink(missing_ok=True)
        fresh = self._folder / f"{key}.{os.getpid()}.tmp"
        fresh.write_text(json.dumps(answer))
        fresh.replace(self._folder / f"{key}.json")


def question(path: Path, plan: PlanParams) -> dict[str, Any]:
    """What the child is asked, in its own words (llama.cpp's parameter names)."""
    value_type = plan.kv_type if plan.kv_type_v is None else plan.kv_type_v
    return {
        "path": str(path),
        "n_ctx": plan.n_ctx,
        "n_seq_max": plan.n_seq_max,
        "type_k": KV_TYPE_IDS[plan.kv_type],
        "type_v": KV_TYPE_IDS[value_type],
        "kv_unified": plan.is_unified,
        "swa_full": plan.swa_full,
        "flash_attention": plan.flash_attention,
        "n_batch": plan.n_batch,
        "n_ubatch": plan.n_ubatch,
        "n_outputs_max": plan.outputs,
        "n_rs_seq": plan.n_rs_seq,
        "gpu_layers": plan.gpu_layers if plan.devices else 0,
        "tensor_split": list(plan.tensor_split) if plan.devices else [],
    }


def merge(
    model: ModelShape, plan: PlanParams, base: Estimate, answer: Mapping[str, Any]
) -> Estimate:
    """The estimate with the library's compute buffers in place of the bound."""
    terms = {uuid: dict(of) for uuid, of in base.terms.items()}
    for of in terms.values():
        of.pop(Term.COMPUTE, None)
    for buffer, size in answer["compute"].items():
        uuid = _device_of(buffer, plan)
        terms[uuid][Term.COMPUTE] = terms[uuid].get(Term.COMPUTE, 0) + int(size)
    if not model.is_exact:
        _spread(terms, layer_devices(model.n_layer, plan), Term.KV, int(answer["kv_bytes"]))
        _spread(terms, layer_devices(model.n_layer, plan), Term.STATE, int(answer["state_bytes"]))
    return Estimate(terms, "dry_run")


def _spread(
    terms: dict[str, dict[Term, int]], homes: tuple[str, ...], term: Term, total: int
) -> None:
    blocks = homes[:-1]
    for uuid, of in terms.items():
        share = -(-total * blocks.count(uuid) // len(blocks))
        if share:
            of[term] = share


def _device_of(buffer: str, plan: PlanParams) -> str:
    """`CUDA1` is the second card of the plan; pinned host memory (`CUDA_Host`) is the host's."""
    number = buffer.removeprefix("CUDA")
    if buffer.startswith("CUDA") and number.isdigit() and int(number) < len(plan.devices):
        return plan.devices[int(number)]
    return HOST


def _environment(plan: PlanParams) -> dict[str, str]:
    """Little of ours, and the plan's cards in the plan's order."""
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    return kept | {
        "CUDA_VISIBLE_DEVICES": ",".join(plan.devices),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
