"""The bounded header reader: real and hostile files."""

from __future__ import annotations

import contextlib
import random
import resource
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import ModelBroken
from appliance.gpu import gguf
from appliance.gpu.shape import read_shape
from tests.gpu.sketches.catalogue import SKETCHES
from tests.gpu.sparse import Sketch, write

MUTATIONS = [1000, pytest.param(5000, marks=pytest.mark.slow)]
RSS_LIMIT_KIB = 64 * 1024


def small(name: str = "small") -> Sketch:
    model = Sketch(
        name,
        "llama",
        {
            "vocab_size": 32,
            "context_length": 128,
            "embedding_length": 64,
            "block_count": 2,
            "feed_forward_length": 128,
            "attention.head_count": 4,
            "attention.head_count_kv": [2, 2],
        },
    )
    model.add("token_embd.weight", 64, 32)
    for il in range(2):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"):
            model.add(f"blk.{il}.{part}.weight", 64, 64)
    return model


def header(keys: int = 0, tensors: int = 0, body: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + body


def key(name: str, kind: int, value: bytes) -> bytes:
    raw = name.encode()
    return struct.pack("<Q", len(raw)) + raw + struct.pack("<I", kind) + value


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


ARCHITECTURE = key("general.architecture", 8, text("llama"))


def tensor(name: str, dimensions: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return (
        text(name)
        + struct.pack("<I", len(dimensions))
        + b"".join(struct.pack("<Q", size) for size in dimensions)
        + struct.pack("<IQ", kind, offset)
    )


def refused(tmp_path: Path, raw: bytes) -> str:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(raw)
    with pytest.raises(ModelBroken) as caught:
        gguf.precheck(path)
    assert caught.value.details["reason"] in caught.value.message
    return caught.value.message


def test_a_header_tells_tensors_and_where_data_begins(tmp_path: Path) -> None:
    path = write(small(), tmp_path)
    found = gguf.read_header(path)
    assert found.architecture == "llama"
    assert len(found.tensors) == 13
    assert found.metadata["llama.attention.head_count_kv"] == (2, 2)
    assert found.tensors[0].offset == found.header_bytes
    last = found.tensors[-1]
    assert last.offset + last.bytes == found.file_bytes


def test_the_vocabularies_of_real_files_are_walked_and_only_counted() -> None:
    folder = Path(__file__).parents[2] / "../shared/vocab"
    files = sorted(folder.glob("*.gguf"))
    if not files:
        pytest.skip(f"no vocabularies at {folder}")
    for path in files:
        value = gguf.read_header(path).metadata["tokenizer.ggml.tokens"]
        assert isinstance(value, gguf.Skipped)
        assert value.items > 30_000


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "ends inside its magic"),
        (b"GGML" + b"\0" * 64, "is no GGUF file"),
        (header(version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (header(tensors=1 << 63), "claims 9223372036854775808 tensors"),
        (header(keys=1 << 63), "claims 9223372036854775808 keys"),
        (header(keys=1, body=struct.pack("<Q", 1 << 62) + b"x" * 64), "at most 4096"),
        (header(keys=1, body=key("", 4, b"\1\0\0\0")), "empty key"),
        (header(keys=2, body=ARCHITECTURE * 2), "twice"),
        (header(keys=1, body=key("a", 99, b"\0" * 8)), "unknown value type 99"),
        (header(keys=1, body=key("a", 9, struct.pack("<IQ", 9, 1 << 40))), "array of arrays"),
        (header(keys=1, body=key("a", 9, struct.pack("<IQ", 4, 1 << 61))), "more than it can hold"),
        (header(keys=1, body=key("a", 9, struct.pack("<IQ", 8, 1 << 20))), "more than it can hold"),
        (header(keys=1, body=key("a", 8, struct.pack("<Q", 1 << 63))), "at most"),
        (header(keys=1, body=key("a", 4, b"\1\0\0\0")), "names no architecture"),
        (
            header(keys=2, body=ARCHITECTURE + key("general.alignment", 4, b"\3\0\0\0")),
            "alignment 3",
        ),
        (
            header(keys=1, tensors=1, body=ARCHITECTURE + tensor("t", (1 << 32, 1 << 32, 4))),
            "overflow",
        ),
        (header(keys=1, tensors=1, body=ARCHITECTURE + tensor("t", (1,) * 5)), "5 dimensions"),
        (header(keys=1, tensors=1, body=ARCHITECTURE + tensor("t", (0, 4))), "empty dimension"),
        (header(keys=1, tensors=1, body=ARCHITECTURE + tensor("t", (100,), 12)), "multiple of 256"),
        (header(keys=1, tensors=1, body=ARCHITECTURE + tensor("t", (4,), 31)), "element type 31"),
        (header(keys=1, tensors=1, body=ARCHITECTURE + tensor("t", (4,), 0, 64)), "expected 0"),
        (header(keys=1, tensors=1, body=ARCHITECTURE + tensor("t", (1 << 20,))), "cut short"),
        (header(keys=1, tensors=1, body=ARCHITECTURE + tensor("t" * 64, (4,))), "at most 63"),
    ],
)
def test_hostile_headers_are_refused_with_the_reason(
    tmp_path: Path, raw: bytes, reason: str
) -> None:
    assert reason in refused(tmp_path, raw)


def test_tensor_data_cut_off_by_one_byte_is_found(tmp_path: Path) -> None:
    path = write(small(), tmp_path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(ModelBroken, match="cut short"):
        gguf.precheck(path)


def test_a_missing_file_and_a_missing_shard_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelBroken, match=r"none\.gguf"):
        gguf.precheck(tmp_path / "none.gguf")
    sketch = small("m-00001-of-00002")
    sketch.metadata["tokenizer.unused"] = 1
    path = write(sketch, tmp_path)
    raw = path.read_bytes()
    split = key("split.count", 2, struct.pack("<H", 2))
    (count,) = struct.unpack_from("<Q", raw, 16)
    path.write_bytes(raw[:16] + struct.pack("<Q", count + 1) + split + raw[24:] + b"\0" * 64)
    with pytest.raises(ModelBroken, match="00002-of-00002"):
        gguf.precheck(path)


@pytest.mark.parametrize("mutations", MUTATIONS)
def test_mutated_headers_are_refused_or_read_fast_and_without_growth(
    tmp_path: Path, mutations: int
) -> None:
    base = write(SKETCHES["gemma-3-270m"](), tmp_path)
    size = base.stat().st_size
    with base.open("rb") as file:
        original = bytearray(file.read(gguf.read_header(base).header_bytes))
    path = tmp_path / "mutant.gguf"
    drawn = random.Random(20261123)
    took: list[float] = []
    refusals = 0
    grown_from = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(mutations):
        mutant = _mutate(original, drawn)
        with path.open("wb") as file:
            file.write(mutant)
            file.truncate(max(size, len(mutant)))
        began = time.process_time()
        try:
            read_shape(path)
        except ModelBroken as error:
            refusals += bool(error.details["reason"])
        took.append(time.process_time() - began)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown_from
    took.sort()
    assert refusals > mutations // 2
    assert took[int(len(took) * 0.95)] < 0.1
    assert grown_kib < RSS_LIMIT_KIB


def _mutate(original: bytearray, drawn: random.Random) -> bytes:
    """One to four hurts: a byte, a huge number where a count may be, a cut, a repeat."""
    mutant = bytearray(original)
    for _ in range(drawn.randint(1, 4)):
        at = drawn.randrange(4, len(mutant) - 8)
        hurt = drawn.randrange(5)
        if hurt == 0:
            mutant[at] ^= 1 << drawn.randrange(8)
        elif hurt == 1:
            mutant[at : at + 8] = struct.pack("<Q", drawn.choice([1 << 63, 1 << 40, 2**64 - 1]))
        elif hurt == 2:
            mutant[at : at + 4] = struct.pack("<I", drawn.choice([9, 2**31, 2**32 - 1, 0]))
        elif hurt == 3 and len(mutant) > 64:
            del mutant[at : at + drawn.randint(1, 16)]
        else:
            mutant[at:at] = mutant[at : at + drawn.randint(1, 32)]
    return bytes(mutant)


@given(raw=st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_any_bytes_after_the_magic_are_read_or_refused(
    raw: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    path.write_bytes(b"GGUF\3\0\0\0" + raw)
    with contextlib.suppress(ModelBroken):
        gguf.precheck(path)


def test_content_hash_tells_fine_tunes_apart_and_is_stable(tmp_path: Path) -> None:
    path = write(small(), tmp_path)
    before = gguf.content_hash(path)
    assert gguf.content_hash(path) == before
    with path.open("r+b") as file:
        file.seek(gguf.read_header(path).tensors[3].offset)
        file.write(b"\1")
    assert gguf.content_hash(path) != before
