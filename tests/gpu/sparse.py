"""Writes GGUF files with a true header and tensor table and a hole for the data.

A 5 GB model takes some 20 KB of disk. Enough for everything that only reads headers, llama.cpp's
own dry run included: so the estimate is held against dozens of real shapes, offline.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

from appliance.gpu.ggml_types import TENSOR_TYPES

TYPE_IDS = {block.name: number for number, block in TENSOR_TYPES.items()}
ALIGNMENT = 32


@dataclass
class Sketch:
    """A model to write: metadata (without the architecture's prefix) and tensors in order."""

    name: str
    architecture: str
    metadata: dict[str, object]
    tensors: list[tuple[str, tuple[int, ...], str]] = field(default_factory=list)

    def add(self, name: str, *dimensions: int, kind: str | None = None) -> None:
        """A tensor; matrices whose rows allow it are Q4_K, else F16; vectors are F32."""
        if kind is None:
            kind = "F32" if len(dimensions) == 1 else "F16"
            if len(dimensions) > 1 and dimensions[0] % 256 == 0:
                kind = "Q4_K"
        self.tensors.append((name, dimensions, kind))


def write(sketch: Sketch, folder: Path) -> Path:
    """The file, as long as the real one would be, almost all of it a hole."""
    path = folder / f"{sketch.name}.gguf"
    keys: dict[str, object] = {
        "general.architecture": sketch.architecture,
        "general.name": sketch.name,
        "tokenizer.ggml.model": "no_vocab",
    }
    for key, value in sketch.metadata.items():
        is_full = key.startswith("tokenizer.")
        keys[key if is_full else f"{sketch.architecture}.{key}"] = value
    header = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(sketch.tensors), len(keys)))
    for key, value in keys.items():
        header += _string(key) + _value(value)
    offset = 0
    for name, dimensions, kind in sketch.tensors:
        block = TENSOR_TYPES[TYPE_IDS[kind]]
        elements = 1
        for dimension in dimensions:
            elements *= dimension
        header += _string(name) + struct.pack("<I", len(dimensions))
        header += b"".join(struct.pack("<Q", dimension) for dimension in dimensions)
        header += struct.pack("<IQ", TYPE_IDS[kind], offset)
        offset += -(-(elements // block.elements * block.bytes) // ALIGNMENT) * ALIGNMENT
    data_start = -(-len(header) // ALIGNMENT) * ALIGNMENT
    with path.open("wb") as file:
        file.write(header)
        file.truncate(data_start + offset)
    return path


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: object) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    assert isinstance(value, list)
    if isinstance(value[0], bool):
        return struct.pack("<IIQ", 9, 7, len(value)) + bytes(value)
    return struct.pack("<IIQ", 9, 4, len(value)) + struct.pack(f"<{len(value)}I", *value)
