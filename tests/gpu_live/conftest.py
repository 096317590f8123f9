"""Runs only where there is a card and a llama-cpp-python that can use it; never faked."""

from __future__ import annotations

import pynvml
import pytest


def _why_not() -> str | None:
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return f"no GPU here: {error}"
    if count == 0:
        return "the driver knows no GPU"
    try:
        import llama_cpp
    except ImportError:
        return "llama-cpp-python is not installed"
    if not llama_cpp.llama_supports_gpu_offload():
        return "llama-cpp-python is built without CUDA"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    live = [item for item in items if "gpu_live" in item.nodeid]
    reason = _why_not() if live else None
    for item in live:
        item.add_marker(pytest.mark.gpu_live)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
