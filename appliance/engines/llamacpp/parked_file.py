"""The file of one parked conversation, and the folder they lie in.

`APKV0001`, header length, header (JSON: model, adapter, counts), tokens (int32, little endian),
state, SHA-256 of all before. A file is believed only when every length adds up and the digest is
right; anything else is `None`. Files are named by what they are for and renamed into place, so
several workers may share a folder. They are not synced (it is a cache), and private (0600), as the
conversations they hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_MAGIC = b"APKV0001"
_HEADER = struct.Struct("!8sI")
_DIGEST_BYTES = 32
_MAX_HEADER_BYTES = 4096
_SAMPLE_BYTES = 1 << 16
_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class Head:
    """What a parked file says of itself; `size_bytes` is the state's."""

    adapter: str | None
    tokens: tuple[int, ...]
    size_bytes: int


def model_key(path: Path, *facts: object) -> str:
    """Hash (hex) that names model file and `facts`: size, both ends and 64 samples between.

    Reading all of a 40 GB file at each start would cost more than the parking saves; the header
    at the front holds every shape and name, and the samples tell fine-tunes apart.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(json.dumps([size, *map(str, facts)]).encode())
    with path.open("rb") as file:
        for index in range(_SAMPLES + 1):
            file.seek(max(0, size - _SAMPLE_BYTES) * index // _SAMPLES)
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def write(folder: Path, key: str, adapter: str | None, tokens: Sequence[int], state: bytes) -> Path:
    """Write one file and return its path. Raises `OSError`; leaves nothing half-written."""
    header = json.dumps(
        {"model": key, "adapter": adapter, "tokens": len(tokens), "state": len(state)}
    ).encode()
    packed = np.asarray(tokens, dtype="<i4").tobytes()
    digest = hashlib.sha256()
    name = hashlib.sha256(header + packed).hexdigest()[:32]
    path = folder / f"{name}.kv"
    partial = folder / f"{name}.{os.getpid()}.part"
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for piece in (_HEADER.pack(_MAGIC, len(header)), header, packed, state):
                digest.update(piece)
                file.write(piece)
            file.write(digest.digest())
        partial.rename(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return path


def parse(data: bytes, key: str) -> tuple[Head, bytes] | None:
    """Head and state of a whole file; None unless every byte is as it was written."""
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        return None
    head = _parse_head(body, len(data), key)
    if head is None:
        return None
    return head, body[len(body) - head.size_bytes :]


def read_head(path: Path, key: str) -> Head | None:
    """The head alone, without the state; None for what is not such a file of this model."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            data = file.read(_HEADER.size + _MAX_HEADER_BYTES)
            if len(data) >= _HEADER.size:
                (_, header_bytes) = _HEADER.unpack_from(data)
                start = _HEADER.size + min(header_bytes, _MAX_HEADER_BYTES)
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    count = int(json.loads(data[_HEADER.size : start])["tokens"])
                    wanted = start + 4 * count
                    if 0 <= wanted <= size and wanted > len(data):
                        data += file.read(wanted - len(data))
    except OSError:
        return None
    return _parse_head(data, size, key)


def _parse_head(data: bytes, file_bytes: int, key: str) -> Head | None:
    """The head from a file's beginning; None unless all its lengths add up to `file_bytes`."""
    try:
        magic, header_bytes = _HEADER.unpack_from(data)
        if magic != _MAGIC or header_bytes > _MAX_HEADER_BYTES:
            return None
        start = _HEADER.size + header_bytes
        header = json.loads(data[_HEADER.size : start])
        count, size, adapter = int(header["tokens"]), int(header["state"]), header["adapter"]
        tokens_end = start + 4 * count
        is_ours = header["model"] == key and tokens_end + size + _DIGEST_BYTES == file_bytes
        if not is_ours or tokens_end > len(data) or not isinstance(adapter, str | None):
            return None
        tokens = np.frombuffer(data, dtype="<i4", count=count, offset=start)
    except (struct.error, ValueError, KeyError, TypeError):
        return None
    return Head(adapter, tuple(tokens.tolist()), size)


def sweep(folder: Path) -> None:
    """Delete what writers left half-written that were killed meanwhile."""
    for partial in folder.glob("*.part"):
        writer = partial.name.split(".")[1]
        if not Path("/proc", writer).exists():
            partial.unlink(missing_ok=True)


def prune(folder: Path, budget_bytes: int, keep: Path) -> None:
    """Delete the oldest files of all models until the folder is within its budget."""
    found: list[tuple[float, int, Path]] = []
    for path in folder.glob("*/*.kv"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            found.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= budget_bytes:
            return
        if path != keep:
            path.unlink(missing_ok=True)
            total -= size
