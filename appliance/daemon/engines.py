"""Builds engine instances from the configuration; the only place that knows all kinds of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path

from appliance.clock import Clock
from appliance.config.manifest import ModelFile, model_path
from appliance.config.models import (
    ClaudeModel,
    LlamaCppModel,
    RemoteModel,
    ScriptedModel,
    VllmModel,
    reached,
)
from appliance.config.paths import Paths
from appliance.config.schema import Config
from appliance.egress.door import Egress
from appliance.egress.rules import Purpose
from appliance.engines.base import Engine
from appliance.engines.llamacpp.engine import LlamaCppEngine
from appliance.engines.llamacpp.params import LlamaCppParams
from appliance.engines.provider.meter import Meter
from appliance.engines.scripted import ScriptedEngine
from appliance.engines.vllm.params import VllmParams
from appliance.engines.vllm.starts import StartLocks
from appliance.errors import ModelBroken
from appliance.gpu.gguf import precheck
from appliance.gpu.safetensors import read_shape
from appliance.gpu.types import KvType
from appliance.gpu.vllm import rank_kv_bytes
from appliance.gpu.wants import Placement

log = logging.getLogger(__name__)
worker_log = logging.getLogger("appliance.worker")


class Engines:
    """`scheduler.dispatcher.EngineFactory`: constructs, starts nothing."""

    def __init__(
        self,
        config: Callable[[], Config],
        paths: Paths,
        manifest: Mapping[str, ModelFile],
        egress: Egress,
        meter: Meter,
        clock: Clock,
    ) -> None:
        self._config = config
        self._paths = paths
        self._manifest = manifest
        self._egress = egress
        self._meter = meter
        self._clock = clock
        self._starts = StartLocks()

    def create(self, model: str, placement: object) -> Engine:
        """An instance of this model in this placement. Raises `ModelBroken` for a bad entry."""
        entry = self._config().models[model]
        if isinstance(entry, LlamaCppModel):
            assert isinstance(placement, Placement)
            return self._llamacpp(model, entry, placement)
        forwarded = reached(model, entry)
        if isinstance(forwarded, RemoteModel):
            return self._remote(model, forwarded)
        if isinstance(entry, ScriptedModel):
            return ScriptedEngine.from_config(entry, self._paths.config_file.parent)
        if isinstance(entry, ClaudeModel):
            return self._claude(model, entry)
        assert isinstance(entry, VllmModel)
        assert isinstance(placement, Placement)
        return self._vllm(model, entry, placement)

    def import_ahead(self) -> None:
        """Import what the first call to Claude would wait for, where one can be made: a second of
        CPU and 40 MiB. Call it in a thread, when nothing runs."""
        for name, entry in self._config().models.items():
            if isinstance(entry, ClaudeModel) and self._egress.permits(name):
                import_module("appliance.engines.claude.engine")

    def _claude(self, name: str, entry: ClaudeModel) -> Engine:
        from appliance.engines.claude.engine import ClaudeEngine  # 35 MiB and a second, if used

        return ClaudeEngine(
            name,
            entry,
            lend=partial(self._egress.client, Purpose("model", name)),
            key=partial(self._egress.key_of, name),
            meter=self._meter,
            clock=self._clock,
        )

    def _remote(self, name: str, entry: RemoteModel) -> Engine:
        from appliance.engines.remote.engine import RemoteEngine

        return RemoteEngine(
            name,
            entry,
            lend=partial(self._egress.client, Purpose("model", name)),
            key=partial(self._egress.key_of, name),
            meter=self._meter,
            clock=self._clock,
        )

    def _llamacpp(self, name: str, entry: LlamaCppModel, placement: Placement) -> Engine:
        config = self._config()
        path = model_path(entry.file, self._paths.models_dir, self._manifest)
        template = entry.chat_template_file
        params = LlamaCppParams(
            model_path=path,
            context_window=placement.context_window,
            slots=placement.slots,
            gpu_layers=placement.gpu_layers,
            tensor_split=placement.tensor_split,
            promised_bytes=tuple(placement.by_device[card] for card in placement.cards),
            kv_type=placement.kv_type.value,
            threads=entry.threads or config.gpu.cpu_threads,
            ubatch_tokens=entry.batch_tokens,
            chat_template=(self._beside_config(template)).read_text() if template else None,
            adapters={key: self._paths.models_dir / value for key, value in entry.adapters.items()},
            embeddings=entry.embeddings,
            park_dir=self._paths.state_dir / "park",
            park_ram_bytes=config.gpu.park_ram_bytes,
            park_disk_bytes=config.gpu.park_disk_bytes,
            environment={"CUDA_VISIBLE_DEVICES": ",".join(placement.cards)},
            start_timeout_s=entry.start_timeout_s,
        )
        return LlamaCppEngine(
            params, precheck=partial(_check_file, name), on_log=partial(_log_line, name)
        )

    def _vllm(self, name: str, entry: VllmModel, placement: Placement) -> Engine:
        from appliance.engines.vllm.engine import VllmEngine

        folder = self._paths.models_dir / entry.folder
        params = VllmParams(
            name=name,
            folder=folder,
            command=entry.command,
            extra_args=entry.extra_args,
            environment=entry.environment,
            context_window=placement.context_window,
            slots=placement.slots,
            kv_bytes=rank_kv_bytes(folder, entry.kv_cache_bytes, placement),
            kv_fp8=placement.kv_type is KvType.Q8_0,
            cards=placement.cards,
            embeddings=entry.embeddings,
            start_timeout_s=entry.start_timeout_s,
        )
        return VllmEngine(
            params,
            locks=self._starts,
            clock=self._clock,
            precheck=_check_folder,
            on_log=partial(_log_line, name),
        )

    def _beside_config(self, file: str) -> Path:
        return self._paths.config_file.parent / file


def _check_file(name: str, path: Path) -> None:
    if not path.exists():
        raise ModelBroken(
            f"model {name!r}: there is no file {path}", hint=f"appliance models fetch {name}"
        )
    precheck(path)


def _check_folder(folder: Path) -> None:
    """Raises `ModelBroken` for one that could run code when it is loaded, or is not whole."""
    read_shape(folder)


def _log_line(name: str, line: str) -> None:
    worker_log.debug("%s: %s", name, line)
