"""Element types of ggml tensors: how many elements a block holds and how many bytes it takes.

Source: `type_traits` in llama.cpp `ggml/src/ggml.c` and the block structures in
`ggml/src/ggml-common.h`, as of the pinned llama-cpp-python. A type that is not here is refused:
a size we would have to guess is a size a hostile file could choose.
"""

from __future__ import annotations

from typing import NamedTuple

from appliance.gpu.types import KvType


class Block(NamedTuple):
    name: str
    elements: int
    bytes: int


TENSOR_TYPES: dict[int, Block] = {
    0: Block("F32", 1, 4),
    1: Block("F16", 1, 2),
    2: Block("Q4_0", 32, 18),
    3: Block("Q4_1", 32, 20),
    6: Block("Q5_0", 32, 22),
    7: Block("Q5_1", 32, 24),
    8: Block("Q8_0", 32, 34),
    9: Block("Q8_1", 32, 36),
    10: Block("Q2_K", 256, 84),
    11: Block("Q3_K", 256, 110),
    12: Block("Q4_K", 256, 144),
    13: Block("Q5_K", 256, 176),
    14: Block("Q6_K", 256, 210),
    15: Block("Q8_K", 256, 292),
    16: Block("IQ2_XXS", 256, 66),
    17: Block("IQ2_XS", 256, 74),
    18: Block("IQ3_XXS", 256, 98),
    19: Block("IQ1_S", 256, 50),
    20: Block("IQ4_NL", 32, 18),
    21: Block("IQ3_S", 256, 110),
    22: Block("IQ2_S", 256, 82),
    23: Block("IQ4_XS", 256, 136),
    24: Block("I8", 1, 1),
    25: Block("I16", 1, 2),
    26: Block("I32", 1, 4),
    27: Block("I64", 1, 8),
    28: Block("F64", 1, 8),
    29: Block("IQ1_M", 256, 56),
    30: Block("BF16", 1, 2),
    34: Block("TQ1_0", 256, 54),
    35: Block("TQ2_0", 256, 66),
    39: Block("MXFP4", 32, 17),
    40: Block("NVFP4", 64, 36),
    41: Block("Q1_0", 128, 18),
    42: Block("Q2_0", 64, 18),
}

KV_BLOCKS: dict[KvType, Block] = {
    KvType.F32: TENSOR_TYPES[0],
    KvType.F16: TENSOR_TYPES[1],
    KvType.BF16: TENSOR_TYPES[30],
    KvType.Q8_0: TENSOR_TYPES[8],
    KvType.Q5_1: TENSOR_TYPES[7],
    KvType.Q5_0: TENSOR_TYPES[6],
    KvType.Q4_1: TENSOR_TYPES[3],
    KvType.Q4_0: TENSOR_TYPES[2],
}

KV_TYPE_IDS: dict[KvType, int] = {
    kv: next(number for number, block in TENSOR_TYPES.items() if block is of_kv)
    for kv, of_kv in KV_BLOCKS.items()
}
"""The number llama.cpp's `type_k` and `type_v` take."""


def row_bytes(block: Block, elements: int) -> int:
    """Bytes of one row; `ggml_row_size`. A row is a whole number of blocks."""
    return -(-elements // block.elements) * block.bytes
