"""Reads the header of a GGUF file, bounded in time and memory, before native code may see it.

A GGUF begins with counts that a hostile file chooses freely, and the native parser behind them
has been fooled before (CVE-2025-53630, CVE-2026-27940: integer overflows; CVE-2026-7482: tensor
sizes trusted, heap read). So a file is read here first, in Python integers that cannot overflow,
by these rules:

- every count and length is compared with a limit *and* with the bytes the file has left, before
  anything is allocated for it;
- arrays of arrays are refused (nothing real uses them), so nothing recurses;
- vocabularies are walked, not kept: a value that no reader asks for costs no memory;
- each tensor's bytes are computed from its dimensions, must begin where the previous one ended,
  and must end inside the file.

Format: ggml `docs/gguf.md`; the checks follow llama.cpp `ggml/src/gguf.cpp`
(`gguf_init_from_file_impl`) and are stricter. Versions 2 and 3, little-endian. Every refusal is
`ModelBroken` and says which key or tensor is wrong, and how.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from appliance.errors import ModelBroken
from appliance.gpu.ggml_types import TENSOR_TYPES

Scalar: TypeAlias = int | float | bool | str
Value: TypeAlias = "Scalar | tuple[Scalar, ...] | Skipped"

MAX_HEADER_BYTES = 128 << 20
"""The largest real header is a 262k vocabulary with merges: about 16 MiB."""
MAX_KEYS = 4096
"""Real files have under 100."""
MAX_TENSORS = 65_536
"""Unmerged mixture-of-experts files had about 40,000; merged ones have under 3,000."""
MAX_KEY_BYTES = 4096
MAX_STRING_BYTES = 4 << 20
"""A chat template of 4 MiB would be 40 times the longest known."""
MAX_ARRAY_ITEMS = 4 << 20
KEPT_ARRAY_ITEMS = 4096
"""Longer arrays (vocabularies) are walked and only their length is kept."""
MAX_TENSOR_NAME_BYTES = 63
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 16
MAX_SHARDS = 512
_CHUNK_BYTES = 1 << 20

_SCALARS: dict[int, tuple[str, int]] = {
    0: ("<B", 1),
    1: ("<b", 1),
    2: ("<H", 2),
    3: ("<h", 2),
    4: ("<I", 4),
    5: ("<i", 4),
    6: ("<f", 4),
    7: ("<?", 1),
    10: ("<Q", 8),
    11: ("<q", 8),
    12: ("<d", 8),
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Skipped:
    """An array too long to keep: only how many items it has."""

    items: int


@dataclass(frozen=True, slots=True)
class TensorInfo:
    name: str
    type_name: str
    dimensions: tuple[int, ...]
    offset: int
    """From the start of the file."""
    bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a file says of itself. `header_bytes` is where tensor data begins."""

    path: Path
    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    header_bytes: int
    file_bytes: int

    @property
    def architecture(self) -> str:
        value = self.metadata["general.architecture"]
        assert isinstance(value, str)
        return value


def read_header(path: Path) -> GgufHeader:
    """The header of one file. Raises `ModelBroken` with the reason; reads no tensor data."""
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            return _read(_Cursor(file, size, path))
    except OSError as error:
        raise ModelBroken(
            f"cannot read {path.name}: {error.strerror or error}",
            hint="check the path and its permissions",
        ) from error


def read_shards(path: Path) -> tuple[GgufHeader, ...]:
    """The headers of a model that may be split over files; `path` is the first or only one.

    Shards are named `NAME-00001-of-00003.gguf` (llama.cpp `llama_split_path`)."""
    first = read_header(path)
    count = first.metadata.get("split.count", 0)
    if not isinstance(count, int) or isinstance(count, bool) or count <= 1:
        return (first,)
    if count > MAX_SHARDS:
        raise _broken(path, f"claims {count} shards; at most {MAX_SHARDS} are read")
    suffix = f"-{1:05d}-of-{count:05d}.gguf"
    if not path.name.endswith(suffix):
        raise _broken(path, f"is one of {count} shards but not the first (expected *{suffix})")
    stem = path.name.removesuffix(suffix)
    rest = (path.with_name(f"{stem}-{n:05d}-of-{count:05d}.gguf") for n in range(2, count + 1))
    return (first, *(read_header(shard) for shard in rest))


def precheck(path: Path) -> None:
    """Raises `ModelBroken` unless every shard's header is sound. Run before native code."""
    read_shards(path)


def content_hash(path: Path) -> str:
    """A name for the model's content in about a millisecond per gigabyte: 32 hex digits.

    Covers every header byte, the file's size, and two samples of 4 KiB in each tensor. Two
    fine-tunes of one model have the same header and size but differ in every trained tensor, so
    they differ here; reading all of a 40 GB file at each start would cost a minute. It names
    caches (dry runs, parked KV); it is no protection against tampering, which the manifest's
    SHA-256 is for (docs/adr/0030).
    """
    digest = hashlib.blake2b(digest_size=16)
    for header in read_shards(path):
        digest.update(struct.pack("<QQ", header.file_bytes, len(header.tensors)))
        with header.path.open("rb", buffering=0) as file:
            _update(digest, file, 0, header.header_bytes)
            for tensor in header.tensors:
                _update(digest, file, tensor.offset, min(tensor.bytes, _SAMPLE_BYTES))
                if tensor.bytes > 2 * _SAMPLE_BYTES:
                    middle = tensor.offset + tensor.bytes // 2
                    _update(digest, file, middle, _SAMPLE_BYTES)
    return digest.hexdigest()


_SAMPLE_BYTES = 4096


def _update(digest: hashlib.blake2b, file: BinaryIO, offset: int, length: int) -> None:
    file.seek(offset)
    while length > 0:
        piece = file.read(min(length, _CHUNK_BYTES))
        if not piece:
            return
        digest.update(piece)
        length -= len(piece)


def _broken(path: Path, reason: str) -> ModelBroken:
    return ModelBroken(
        f"{path.name} {reason}",
        hint="download the file again, or convert it with a current llama.cpp",
        details={"path": str(path), "reason": reason},
    )


class _Cursor:
    """A forward reader over a window of the file: never holds more than one string and a chunk."""

    def __init__(self, file: BinaryIO, file_bytes: int, path: Path) -> None:
        self._file = file
        self._window = b""
        self._at = 0
        self._base = 0
        self.file_bytes = file_bytes
        self.path = path

    @property
    def position(self) -> int:
        return self._base + self._at

    @property
    def left(self) -> int:
        return min(self.file_bytes, MAX_HEADER_BYTES) - self.position

    def broken(self, reason: str) -> ModelBroken:
        return _broken(self.path, reason)

    def take(self, length: int, what: str) -> bytes:
        self.need(length, what)
        start = self._at
        self._at += length
        return self._window[start : self._at]

    def need(self, length: int, what: str) -> None:
        """Make `length` bytes available in the window, or refuse."""
        if length > self.left:
            raise self.broken(f"ends inside {what}: {length} bytes needed, {self.left} left")
        missing = length - (len(self._window) - self._at)
        if missing <= 0:
            return
        fresh = self._file.read(max(missing, _CHUNK_BYTES))
        while fresh is not None and len(fresh) < missing:
            more = self._file.read(missing - len(fresh))
            if not more:
                raise self.broken(f"ends inside {what}")
            fresh += more
        self._base += self._at
        self._window = self._window[self._at :] + fresh
        self._at = 0

    def number(self, layout: str, size: int, what: str) -> Scalar:
        value: Scalar = struct.unpack(layout, self.take(size, what))[0]
        return value

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def string(self, limit: int, what: str) -> str:
        length = self.u64(what)
        if length > limit:
            raise self.broken(f"has {what} of {length} bytes; at most {limit} are read")
        return self.take(length, what).decode("utf-8", errors="replace")

    def skip(self, length: int, what: str) -> None:
        if length > self.left:
            raise self.broken(f"ends inside {what}: {length} bytes needed, {self.left} left")
        buffered = len(self._window) - self._at
        if length <= buffered:
            self._at += length
            return
        self._base = self.position + length
        self._window, self._at = b"", 0
        self._file.seek(self._base)

    def skip_strings(self, count: int, what: str) -> None:
        """Walk `count` strings without keeping them; the hot loop of a large vocabulary."""
        length_at = _LENGTH.unpack_from
        while count > 0:
            self.need(8, what)
            window, at, last = self._window, self._at, len(self._window) - 8
            walked = 0
            for walked in range(1, count + 1):  # noqa: B007
                at += 8 + length_at(window, at)[0]
                if at > last:
                    break
            count -= walked
            self.skip(at - self._at, what)  # the last string may end far beyond the window


_LENGTH = struct.Struct("<Q")


def _read(cursor: _Cursor) -> GgufHeader:
    magic = cursor.take(4, "its magic")
    if magic != b"GGUF":
        raise cursor.broken(f"is no GGUF file (it begins with {magic!r})")
    version = cursor.u32("its version")
    if version not in (2, 3):
        hint = "big-endian or damaged" if version & 0xFFFF == 0 else "unsupported"
        raise cursor.broken(f"has GGUF version {version} ({hint}); versions 2 and 3 are read")
    tensor_count = cursor.u64("its tensor count")
    key_count = cursor.u64("its key count")
    if tensor_count > min(MAX_TENSORS, cursor.left // 24):
        raise cursor.broken(f"claims {tensor_count} tensors, more than it can hold")
    if key_count > min(MAX_KEYS, cursor.left // 13):
        raise cursor.broken(f"claims {key_count} keys, more than it can hold")
    metadata = _read_metadata(cursor, key_count)
    tensors, header_bytes = _read_tensors(cursor, tensor_count, _alignment(cursor, metadata))
    return GgufHeader(cursor.path, version, metadata, tensors, header_bytes, cursor.file_bytes)


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for index in range(count):
        key = cursor.string(MAX_KEY_BYTES, f"key {index}")
        if not key:
            raise cursor.broken(f"has an empty key ({index})")
        if key in metadata:
            raise cursor.broken(f"has the key {key!r} twice")
        metadata[key] = _read_value(cursor, cursor.u32(f"the type of {key!r}"), key)
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise cursor.broken("names no architecture (general.architecture)")
    return metadata


def _read_value(cursor: _Cursor, kind: int, key: str) -> Value:
    if kind == _STRING:
        return cursor.string(MAX_STRING_BYTES, f"the value of {key!r}")
    if kind in _SCALARS:
        return cursor.number(*_SCALARS[kind], f"the value of {key!r}")
    if kind != _ARRAY:
        raise cursor.broken(f"has an unknown value type {kind} at {key!r}")
    what = f"the array {key!r}"
    item_kind, items = cursor.u32(what), cursor.u64(what)
    if item_kind == _ARRAY:
        raise cursor.broken(f"has an array of arrays at {key!r}")
    if item_kind != _STRING and item_kind not in _SCALARS:
        raise cursor.broken(f"has an unknown item type {item_kind} at {key!r}")
    smallest = 8 if item_kind == _STRING else _SCALARS[item_kind][1]
    if items > min(MAX_ARRAY_ITEMS, cursor.left // smallest):
        raise cursor.broken(f"claims {items} items in {key!r}, more than it can hold")
    if items <= KEPT_ARRAY_ITEMS and item_kind != _STRING:
        layout, size = _SCALARS[item_kind]
        packed = cursor.take(items * size, what)
        return struct.unpack(f"<{items}{layout[1]}", packed)
    if item_kind == _STRING:
        cursor.skip_strings(items, what)
    else:
        cursor.skip(items * smallest, what)
    return Skipped(items)


def _alignment(cursor: _Cursor, metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment", 32)
    if not isinstance(value, int) or isinstance(value, bool):
        raise cursor.broken("has an alignment that is no number")
    if value <= 0 or value > MAX_ALIGNMENT or value & (value - 1):
        raise cursor.broken(f"has alignment {value}; a power of two up to {MAX_ALIGNMENT} is read")
    return value


def _read_tensors(
    cursor: _Cursor, count: int, alignment: int
) -> tuple[tuple[TensorInfo, ...], int]:
    rows: list[tuple[str, str, tuple[int, ...], int, int]] = []
    names: set[str] = set()
    expected = 0
    for index in range(count):
        name = cursor.string(MAX_TENSOR_NAME_BYTES, f"the name of tensor {index}")
        if name in names:
            raise cursor.broken(f"has the tensor {name!r} twice")
        names.add(name)
        what = f"tensor {name!r}"
        rank = cursor.u32(what)
        if rank > MAX_DIMENSIONS:
            raise cursor.broken(f"has {rank} dimensions in {what}; at most 4 are read")
        dimensions = tuple(cursor.u64(what) for _ in range(rank))
        kind, offset = cursor.u32(what), cursor.u64(what)
        block = TENSOR_TYPES.get(kind)
        if block is None:
            raise cursor.broken(f"has an unknown element type {kind} in {what}")
        size = _tensor_bytes(cursor, dimensions, block.elements, block.bytes, what)
        if offset != expected:
            raise cursor.broken(f"has {what} at {offset}, expected {expected}")
        if offset + size > cursor.file_bytes:
            raise cursor.broken(
                f"is cut short: {what} needs {offset + size} bytes, the file has "
                f"{cursor.file_bytes}"
            )
        expected = _pad(offset + size, alignment)
        rows.append((name, block.name, dimensions, offset, size))
    start = _pad(cursor.position, alignment) if rows else cursor.position
    if rows and start + rows[-1][3] + rows[-1][4] > cursor.file_bytes:
        short = start + rows[-1][3] + rows[-1][4] - cursor.file_bytes
        raise cursor.broken(f"is cut short: {short} bytes of tensor data are missing")
    return tuple(
        TensorInfo(name, kind, dimensions, start + offset, size)
        for name, kind, dimensions, offset, size in rows
    ), start


def _tensor_bytes(
    cursor: _Cursor, dimensions: tuple[int, ...], per_block: int, block_bytes: int, what: str
) -> int:
    elements = 1
    for dimension in dimensions:
        if dimension == 0:
            raise cursor.broken(f"has an empty dimension in {what}")
        elements *= dimension
        if elements >= 1 << 62:
            raise cursor.broken(f"has dimensions that overflow in {what}: {dimensions}")
    row = dimensions[0] if dimensions else 1
    if row % per_block:
        raise cursor.broken(f"has rows of {row} in {what}, not a multiple of {per_block}")
    return elements // per_block * block_bytes


def _pad(value: int, to: int) -> int:
    return -(-value // to) * to
