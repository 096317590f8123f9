"""Frames on the socket between daemon and worker: four bytes of length, then JSON (UTF-8)."""

from __future__ import annotations

import json
import struct
from typing import Any

MAX_FRAME_BYTES = 64 << 20
"""Bounds what a broken peer can make us hold; the API's body limit is well below."""

_LENGTH = struct.Struct("!I")
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class FrameError(Exception):
    """The peer does not speak our frames; the connection is of no more use."""


def encode(body: dict[str, Any]) -> bytes:
    """One frame. Raises `FrameError` for one larger than `MAX_FRAME_BYTES`."""
    data = _to_json(body).encode("utf-8", "surrogatepass")
    if len(data) > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {len(data)} bytes is over the {MAX_FRAME_BYTES} allowed")
    return _LENGTH.pack(len(data)) + data


class FrameDecoder:
    """Bytes in, frames out; holds at most one incomplete frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The frames completed by `data`. Raises `FrameError` on anything that is not ours."""
        self._buffer += data
        frames: list[dict[str, Any]] = []
        while len(self._buffer) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer)
            if size > MAX_FRAME_BYTES:
                raise FrameError(f"a frame announces {size} bytes")
            end = _LENGTH.size + size
            if len(self._buffer) < end:
                break
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            try:
                frame = json.loads(body.decode("utf-8", "surrogatepass"))
            except ValueError as error:
                raise FrameError(f"a frame is not JSON: {error}") from error
            if not isinstance(frame, dict):
                raise FrameError("a frame is not an object")
            frames.append(frame)
        return frames
