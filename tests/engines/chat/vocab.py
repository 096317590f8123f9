"""Real tokenizer vocabularies, read from vocabulary GGUFs in a second (the gguf package takes
seven)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from appliance.engines.chat.constraint import ConstraintFactory

SHARED = Path(__file__).resolve().parents[4] / "shared"
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class RealVocab:
    tokens: tuple[bytes, ...]
    special_ids: tuple[int, ...]
    end_ids: tuple[int, ...]

    def factory(self) -> ConstraintFactory:
        return ConstraintFactory(self.tokens, self.end_ids, self.special_ids)


@lru_cache(maxsize=4)
def real_vocab(path: Path, marks: tuple[str, ...] = ()) -> RealVocab:
    """The vocabulary of `path`; `marks` become the texts of its first unused control tokens, as the
    vocabularies of models with such tokens have them."""
    fields = read_metadata(path)
    to_byte = _byte_alphabet()
    tokens: list[bytes] = []
    special: list[int] = []
    free = iter(marks)
    kinds = fields["tokenizer.ggml.token_type"]
    for index, (text, kind) in enumerate(zip(fields["tokenizer.ggml.tokens"], kinds, strict=True)):
        if kind == _NORMAL:
            tokens.append(bytes(to_byte[character] for character in text))
            continue
        special.append(index)
        is_unused = "[PAD" in text or "reserved_special" in text
        tokens.append((next(free, text) if is_unused else text).encode())
    return RealVocab(tuple(tokens), tuple(special), (fields["tokenizer.ggml.eos_token_id"],))


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(256 + place): byte for place, byte in enumerate(rest)
    }


def read_metadata(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        magic, _version, _tensors, count = struct.unpack("<4sIQQ", file.read(24))
        assert magic == b"GGUF"
        return {_string(file): _value(file, *_unpack(file, "I")) for _ in range(count)}


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        of, length = struct.unpack("<IQ", file.read(12))
        if of == _STRING:
            return [_string(file) for _ in range(length)]
        form = f"<{length}{_SCALARS[of]}"
        return list(struct.unpack(form, file.read(struct.calcsize(form))))
    return _unpack(file, _SCALARS[kind])[0]


def _string(file: BinaryIO) -> str:
    return file.read(_unpack(file, "Q")[0]).decode()


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack("<" + form, file.read(struct.calcsize("<" + form)))
