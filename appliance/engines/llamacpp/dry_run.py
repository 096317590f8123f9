"""Asks llama.cpp what a model would take, without loading it: `python -m ...llamacpp.dry_run`.

With `no_alloc` the library reads only the header, builds the worst-case graph and simulates every
allocation on the real backend (it is what `llama-server --fit` does, `common/fit.cpp`). The sizes
come out in its log alone: `llama_get_memory_breakdown` returns a C++ map, `llama_params_fit` is no
longer in the C interface. So this short-lived process collects the log and prints one JSON object
per question. It may abort (`GGML_ASSERT` on a shape the library refuses), and on a GPU it creates
a CUDA context: two reasons why it is a process of its own.

Questions come on stdin, one JSON object a line:
`{"path", "n_ctx", "n_seq_max", "type_k", "type_v", "kv_unified", "swa_full", "flash_attention",
"n_batch", "n_ubatch", "n_outputs_max", "n_rs_seq", "gpu_layers", "tensor_split"}`.
Answers: `{"model_bytes", "kv_bytes", "state_bytes", "output_bytes", "compute": {buffer: bytes},
"library"}` or `{"error", "log"}`.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from typing import Any

import llama_cpp as lib

_MIB = 1 << 20
_LOG_TAIL_LINES = 20
_COMPUTE = re.compile(r"sched_reserve: +(\S+) compute buffer size = +([0-9.]+) MiB")
_OUTPUT = re.compile(r"(\S+) +output buffer size = +([0-9.]+) MiB")
_KV = re.compile(
    r"llama_kv_cache\w*: size = +[0-9.]+ MiB.*K \(\w+\): +([0-9.]+) MiB, V \(\w+\): +([0-9.]+) MiB"
)
_STATE = re.compile(
    r"llama_memory_recurrent: size = .*R \(\w+\): +([0-9.]+) MiB, S \(\w+\): +([0-9.]+) MiB"
)


class _Log:
    """The library's log since the last `clear`; keeps the callback alive for as long as it runs."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._partial = ""

        @lib.llama_log_callback  # type: ignore[untyped-decorator]
        def receive(level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
            self._partial += text.decode("utf-8", errors="replace")
            *whole, self._partial = self._partial.split("\n")
            self.lines.extend(whole)

        self._receive = receive
        lib.llama_log_set(receive, ctypes.c_void_p(0))

    def clear(self) -> None:
        self.lines.clear()

    def tail(self) -> list[str]:
        return [*self.lines, self._partial][-_LOG_TAIL_LINES:]


def main() -> int:
    log = _Log()
    lib.llama_backend_init()
    held: tuple[object, Any] | None = None
    for line in sys.stdin:
        question = json.loads(line)
        load_key = (question["path"], question["gpu_layers"], tuple(question["tensor_split"]))
        log.clear()
        if held is None or held[0] != load_key:
            if held is not None:
                lib.llama_model_free(held[1])
            model = _load(question)
            held = None if model is None else (load_key, model)
        answer: dict[str, Any] = {"error": "the model could not be read"}
        if held is not None:
            answer = _ask(held[1], question)
        if "error" not in answer:
            answer |= _sizes(log.lines)
        else:
            answer |= {"log": log.tail()}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return 0


def _load(question: dict[str, Any]) -> Any:
    params = lib.llama_model_default_params()
    params.no_alloc = True
    params.load_mode = lib.LLAMA_LOAD_MODE_NONE
    params.n_gpu_layers = question["gpu_layers"]
    split = (ctypes.c_float * lib.llama_max_devices())(*question["tensor_split"])
    if question["tensor_split"]:
        params.tensor_split = split
    return lib.llama_model_load_from_file(question["path"].encode(), params)


def _ask(model: Any, question: dict[str, Any]) -> dict[str, Any]:
    params = lib.llama_context_default_params()
    for name in ("n_ctx", "n_seq_max", "type_k", "type_v", "kv_unified", "swa_full"):
        setattr(params, name, question[name])
    for name in ("n_batch", "n_ubatch", "n_outputs_max", "n_rs_seq"):
        setattr(params, name, question[name])
    params.flash_attn_type = 1 if question["flash_attention"] else 0
    context = lib.llama_init_from_model(model, params)
    if not context:
        return {"error": "the library refused these parameters"}
    lib.llama_free(context)
    return {"model_bytes": int(lib.llama_model_size(model)), "library": lib.__version__}


def _sizes(lines: list[str]) -> dict[str, Any]:
    compute: dict[str, int] = {}
    kv = state = output = 0.0
    for line in lines:
        if found := _COMPUTE.search(line):
            compute[found[1]] = compute.get(found[1], 0) + round(float(found[2]) * _MIB)
        elif found := _KV.search(line):
            kv += float(found[1]) + float(found[2])
        elif found := _STATE.search(line):
            state += float(found[1]) + float(found[2])
        elif found := _OUTPUT.search(line):
            output += float(found[2])
    return {
        "compute": compute,
        "kv_bytes": round(kv * _MIB),
        "state_bytes": round(state * _MIB),
        "output_bytes": round(output * _MIB),
    }


if __name__ == "__main__":
    sys.exit(main())
