"""The edge to libllama: a loaded model, its vocabulary, and a context to decode in.

Everything ctypes is here and in `sampling.py`. The structures are passed by value and change
every few builds, so `check_binding` refuses to run on any other than the one this was written
for: a wrong layout would not fail, it would decode nonsense. Callbacks handed to the library are
kept referenced for as long as it may call them.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import llama_cpp as lib
import numpy as np
import numpy.typing as npt

from appliance.engines.llamacpp.params import LlamaCppParams
from appliance.engines.llamacpp.vocab import Vocab

BINDING_VERSION: Final = "0.3.36"

# ggml.h, enum ggml_type
KV_TYPES: Final = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "bf16": 30,
}
MAX_SEQUENCES: Final = 256  # llama-cparams.h, LLAMA_MAX_SEQ
ROWS_KEPT: Final = 2 * MAX_SEQUENCES
"""Views of rows of logits; a context that has moved its buffer begins anew."""

GPU_DEVICE: Final = 1  # ggml-backend.h, GGML_BACKEND_DEVICE_TYPE_GPU
LINES_KEPT: Final = 200
"""Of the library's log: more than a load says after its tensors are laid out."""

Floats = npt.NDArray[np.float32]


class LoadError(Exception):
    """The library refused: model file, parameters or memory. The log says why."""


def check_binding() -> None:
    """Raise `LoadError` unless version, structure sizes and defaults are those expected."""
    if lib.__version__ != BINDING_VERSION:
        raise LoadError(
            f"llama-cpp-python {lib.__version__} is installed, {BINDING_VERSION} is needed"
        )
    context = lib.llama_context_default_params()
    model = lib.llama_model_default_params()
    seen = {
        "sizeof(llama_context_params)": ctypes.sizeof(context),
        "sizeof(llama_model_params)": ctypes.sizeof(model),
        "n_ctx": context.n_ctx,
        "n_batch": context.n_batch,
        "n_ubatch": context.n_ubatch,
        "n_seq_max": context.n_seq_max,
        "n_outputs_max": context.n_outputs_max,
        "yarn_ext_factor": context.yarn_ext_factor,
        "defrag_thold": context.defrag_thold,
        "type_k": context.type_k,
        "type_v": context.type_v,
        "offload_kqv": context.offload_kqv,
        "swa_full": context.swa_full,
        "kv_unified": context.kv_unified,
        "n_samplers": context.n_samplers,
        "n_gpu_layers": model.n_gpu_layers,
        "split_mode": model.split_mode,
        "use_extra_bufts": model.use_extra_bufts,
        "no_alloc": model.no_alloc,
    }
    wrong = [
        f"{name} is {value!r}, not {_EXPECTED[name]!r}"
        for name, value in seen.items()
        if value != _EXPECTED[name]
    ]
    if wrong:
        raise LoadError("the binding's structures have changed: " + "; ".join(wrong))


_EXPECTED: Final[dict[str, object]] = {
    "sizeof(llama_context_params)": 160,
    "sizeof(llama_model_params)": 80,
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_outputs_max": 0,
    "yarn_ext_factor": -1.0,
    "defrag_thold": -1.0,
    "type_k": 1,
    "type_v": 1,
    "offload_kqv": True,
    "swa_full": True,
    "kv_unified": False,
    "n_samplers": 0,
    "n_gpu_layers": -1,
    "split_mode": 1,
    "use_extra_bufts": True,
    "no_alloc": False,
}


class Log:
    """Sends the library's log lines to `write`; keep it alive as long as the library. `said` is
    the last of them."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._line = ""
        self._last: deque[str] = deque(maxlen=LINES_KEPT)
        self._callback = lib.llama_log_callback(self._receive)
        lib.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _receive(self, level: int, text: bytes, _data: object) -> None:
        if level == 1:  # GGML_LOG_LEVEL_DEBUG
            return
        self._line += text.decode("utf-8", "replace")
        *lines, self._line = self._line.split("\n")
        for line in lines:
            self._last.append(line)
            self._write(line)

    @property
    def said(self) -> str:
        return "\n".join([*self._last, self._line])

    def flush(self) -> None:
        """Write a last line that had no newline."""
        if self._line:
            self._write(self._line)
            self._line = ""


def free_bytes() -> dict[str, int]:
    """Free bytes of each card that this process sees, by the library's name of it, in its order."""
    ggml = lib.llama_cpp._lib
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_name.restype = ctypes.c_char_p
    found = {}
    for index in range(ggml.ggml_backend_dev_count()):
        device = ctypes.c_void_p(ggml.ggml_backend_dev_get(ctypes.c_size_t(index)))
        if ggml.ggml_backend_dev_type(device) == GPU_DEVICE:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            ggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
            found[ggml.ggml_backend_dev_name(device).decode()] = free.value
    return found


class Model:
    """Weights and vocabulary of one GGUF. `close` frees them."""

    def __init__(self, params: LlamaCppParams, on_progress: Callable[[float], None]) -> None:
        lib.llama_backend_init()
        wanted = lib.llama_model_default_params()
        wanted.n_gpu_layers = params.gpu_layers
        wanted.main_gpu = params.main_gpu
        if params.tensor_split:
            self._split = (ctypes.c_float * lib.llama_max_devices())(*params.tensor_split)
            wanted.tensor_split = self._split

        def progress(fraction: float, _data: object) -> bool:
            on_progress(fraction)
            return True

        self._progress = lib.llama_progress_callback(progress)
        wanted.progress_callback = self._progress
        self.handle = lib.llama_model_load_from_file(str(params.model_path).encode(), wanted)
        if not self.handle:
            raise LoadError(f"llama.cpp cannot load {params.model_path}")
        self.vocab = Vocab(self.handle)
        self.n_embd: int = lib.llama_model_n_embd(self.handle)
        self.trained_window: int = lib.llama_model_n_ctx_train(self.handle)
        self.window_cells: int = lib.llama_model_n_swa(self.handle)
        """Width of the sliding window, 0 without one."""
        self.is_recurrent: bool = bool(
            lib.llama_model_is_recurrent(self.handle) or lib.llama_model_is_hybrid(self.handle)
        )
        self.has_encoder: bool = lib.llama_model_has_encoder(self.handle)
        self.has_decoder: bool = lib.llama_model_has_decoder(self.handle)

    def close(self) -> None:
        lib.llama_model_free(self.handle)

    @property
    def description(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self.handle, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    @property
    def chat_template(self) -> str | None:
        """The model's own Jinja source."""
        source = lib.llama_model_chat_template(self.handle, None)
        return None if source is None else source.decode("utf-8", "replace")


class Adapter:
    """A LoRA adapter loaded for one model; freed with the model."""

    def __init__(self, model: Model, path: Path) -> None:
        self.handle = lib.llama_adapter_lora_init(model.handle, str(path).encode())
        if not self.handle:
            raise LoadError(f"llama.cpp cannot load the adapter {path}")


class Batch:
    """The one batch structure, allocated once and filled by index.

    Written through numpy views of its arrays: per-element ctypes stores were a third of the
    loop's Python time.
    """

    def __init__(self, capacity: int) -> None:
        self.raw = lib.llama_batch_init(capacity, 0, 1)
        self._tokens = np.ctypeslib.as_array(self.raw.token, (capacity,))
        self._positions = np.ctypeslib.as_array(self.raw.pos, (capacity,))
        self._outputs = np.ctypeslib.as_array(self.raw.logits, (capacity,))
        counts = np.ctypeslib.as_array(self.raw.n_seq_id, (capacity,))
        counts[:] = 1
        # seq_id is an array of pointers to one id each; gather the addresses once and view
        # them as they lie in memory.
        self._sequences = [self.raw.seq_id[i] for i in range(capacity)]
        self.clear()

    def clear(self) -> None:
        self.raw.n_tokens = 0

    def add(self, sequence: int, position: int, tokens: Sequence[int], *, output: bool) -> int:
        """Append a run of tokens; with `output`, returns the index of its last token's logits."""
        start: int = self.raw.n_tokens
        if len(tokens) == 1:
            # Every stream's step; slices would cost ten times as much.
            self._tokens[start] = tokens[0]
            self._positions[start] = position
            self._outputs[start] = output
            self._sequences[start][0] = sequence
            self.raw.n_tokens = start + 1
            return start
        end = start + len(tokens)
        self._tokens[start:end] = tokens
        self._positions[start:end] = range(position, position + len(tokens))
        self._outputs[start:end] = 0
        for index in range(start, end):
            self._sequences[index][0] = sequence
        if output:
            self._outputs[end - 1] = 1
        self.raw.n_tokens = end
        return end - 1

    def mark_all_outputs(self) -> None:
        """Every token is an output, as pooled embeddings want it."""
        self._outputs[: self.raw.n_tokens] = 1

    def close(self) -> None:
        lib.llama_batch_free(self.raw)


class Context:
    """KV cache and compute buffers over a model; one thread may use it at a time."""

    def __init__(self, model: Model, params: LlamaCppParams, sequences: int) -> None:
        wanted = lib.llama_context_default_params()
        wanted.n_ctx = params.total_kv_tokens
        wanted.n_seq_max = sequences
        wanted.n_batch = max(params.batch_tokens, params.ubatch_tokens)
        wanted.n_ubatch = params.ubatch_tokens
        threads = params.threads or len(os.sched_getaffinity(0))
        wanted.n_threads = wanted.n_threads_batch = threads
        wanted.type_k = wanted.type_v = KV_TYPES[params.kv_type]
        wanted.swa_full = False
        wanted.kv_unified = True
        wanted.embeddings = params.embeddings
        if params.embeddings:
            # An encoder sees a text whole: it must fit one micro-batch.
            wanted.n_batch = wanted.n_ubatch = max(params.ubatch_tokens, params.context_window)
        else:
            # Unset it means n_batch rows of logits: half a GiB at a 262k vocabulary.
            wanted.n_outputs_max = sequences
        self.handle = self._create(model, wanted)
        if params.embeddings and lib.llama_pooling_type(self.handle) == lib.LLAMA_POOLING_TYPE_NONE:
            lib.llama_free(self.handle)
            wanted.pooling_type = lib.LLAMA_POOLING_TYPE_MEAN
            self.handle = self._create(model, wanted)
        self.memory = lib.llama_get_memory(self.handle)
        """None for an encoder without a cache."""
        self.cells: int = lib.llama_n_ctx(self.handle)
        self.batch_tokens: int = lib.llama_n_batch(self.handle)
        self._n_vocab = model.vocab.size
        self._n_embd = model.n_embd
        self._rows: dict[int, Floats] = {}

    @staticmethod
    def _create(model: Model, wanted: Any) -> Any:
        handle = lib.llama_init_from_model(model.handle, wanted)
        if not handle:
            raise LoadError("llama.cpp cannot create the context (memory, or its parameters)")
        return handle

    def close(self) -> None:
        lib.llama_free(self.handle)

    def decode(self, batch: Batch) -> int:
        """0: done. 1: no room in the KV cache, nothing changed. 2: aborted. Negative: failed."""
        return int(lib.llama_decode(self.handle, batch.raw))

    def wait(self) -> None:
        """Return when the last decode is really done (a GPU runs behind)."""
        lib.llama_synchronize(self.handle)

    def clear(self) -> None:
        """Forget every sequence."""
        if self.memory:
            lib.llama_memory_clear(self.memory, False)

    def logits(self, index: int) -> Floats:
        """A view (not a copy) of the logits of the batch's token `index`; valid until decode."""
        row = lib.llama_get_logits_ith(self.handle, index)
        # The library's rows lie where they lay in the last step: a few views serve for ever.
        address = ctypes.addressof(row.contents)
        view = self._rows.get(address)
        if view is None:
            if len(self._rows) > ROWS_KEPT:
                self._rows.clear()
            view = self._rows[address] = np.ctypeslib.as_array(row, (self._n_vocab,))
        return view

    def pooled(self, sequence: int) -> Floats:
        row = lib.llama_get_embeddings_seq(self.handle, sequence)
        return np.ctypeslib.as_array(row, (self._n_embd,)).copy()

    def forget(self, sequence: int, start: int = 0) -> bool:
        """Drop positions from `start` on; False where this memory cannot be cut there."""
        return bool(lib.llama_memory_seq_rm(self.memory, sequence, start, -1))

    def share(self, source: int, target: int, end: int) -> None:
        """Let `target` also own the cells of `source` below `end`; -1 for all of them."""
        lib.llama_memory_seq_cp(self.memory, source, target, -1 if end < 0 else 0, end)

    def first_position(self, sequence: int) -> int:
        """The lowest position still held (a pruned sliding window has lost the start); -1: none."""
        return int(lib.llama_memory_seq_pos_min(self.memory, sequence))

    def last_position(self, sequence: int) -> int:
        return int(lib.llama_memory_seq_pos_max(self.memory, sequence))

    def state_bytes(self, sequence: int) -> int:
        """The size of what `save` would return."""
        return int(lib.llama_state_seq_get_size(self.handle, sequence))

    def save(self, sequence: int) -> bytes:
        """The sequence's whole state; empty when the library gives none."""
        size = self.state_bytes(sequence)
        buffer = (ctypes.c_uint8 * size)()
        written = lib.llama_state_seq_get_data(self.handle, buffer, size, sequence)
        return memoryview(buffer)[:written].tobytes()

    def restore(self, sequence: int, state: bytes) -> bool:
        """Replace the sequence's state; False where there is no room or it does not fit."""
        buffer = ctypes.cast(ctypes.c_char_p(state), ctypes.POINTER(ctypes.c_uint8))
        size = lib.llama_state_seq_set_data(self.handle, buffer, len(state), sequence)
        return bool(size == len(state))

    def use_adapter(self, adapter: Adapter | None) -> None:
        """Apply one adapter, or none, to all further decodes."""
        if adapter is None:
            lib.llama_set_adapters_lora(self.handle, None, 0, None)
            return
        handles = (lib.llama_adapter_lora_p_ctypes * 1)(adapter.handle)
        scales = (ctypes.c_float * 1)(1.0)
        status: Any = lib.llama_set_adapters_lora(self.handle, handles, 1, scales)
        if status != 0:
            raise LoadError("llama.cpp refuses the adapter")
