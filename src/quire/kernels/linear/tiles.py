"""How a product with few rows is cut into programs on a GPU: a pure function of its shape.

Such a product reads each weight once and does little else, so what counts is that every multiprocessor has reads in
flight from the first microsecond to the last. Two designs:

* `VectorTiles` (1 or 2 rows): a program reads its rows of the weight into registers, before it waits for its
  predecessor, multiplies and adds. Lowest latency.
* `SkinnyTiles` (up to 64 rows; more where the weight is small): a program streams its rows of the weight through
  shared memory to the tensor cores.

MEASURED holds the winners of `benchmarks/gpu_linear.py --sweep`; shapes that are not in it follow the rules below.
"""

from dataclasses import dataclass
from functools import cache

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
MAX_VECTOR_TOKENS = 2
MAX_SKINNY_TOKENS = 64
PARTIAL_ELEMENTS = 4 * 2**20
"""Float32 elements of the scratch for partial sums of split products."""
MAX_TILES = 4096
"""Of split products: each tile has a counter."""

_WANTED_PROGRAMS = 120
"""Nearly one for each of the 132 multiprocessors of an H200."""
_STAGE_BYTES = 16 * 1024
_PIPELINE_BYTES = 96 * 1024
"""Shared memory of a program at most, so that a second one, often the next kernel's, fits beside it."""


@dataclass(frozen=True, slots=True)
class VectorTiles:
    """A program computes `block_n` columns for all rows of x.

    Attributes:
        block_k: Inputs read at a time; best a multiple of 256 * num_warps, so that each thread reads 16 bytes and the
            same inputs of every row of the weight.
    """

    block_n: int
    block_k: int
    num_warps: int


@dataclass(frozen=True, slots=True)
class SkinnyTiles:
    """`split_k` programs compute `block_n` columns for `block_t` rows of x, each from a part of the inputs.

    Attributes:
        num_stages: Tiles of the weight in flight, plus one.
        block_t: 0 for all rows of x, up to the bucket.
    """

    block_n: int
    block_k: int
    split_k: int
    num_warps: int
    num_stages: int
    block_t: int = 0

    def tokens_per_program(self, num_tokens: int) -> int:
        """Rows of x that a program computes; the tensor cores want 8 at least, 16 where x is their left operand."""
        return self.block_t or max(8 if self.block_n >= 64 else 16, bucket(num_tokens))


class CuBLAS:
    """In `MEASURED`: plain cuBLAS wins."""


Tiles = VectorTiles | SkinnyTiles
Shape = tuple[int, int, bool, int]
"""Rows of the weight (gate and up counted both), inputs, gated, bucket of rows of x."""

# fmt: off
MEASURED: dict[Shape, Tiles | type[CuBLAS]] = {
    (6144, 4096, False, 1): VectorTiles(4, 4096, 4),
    (6144, 4096, False, 2): VectorTiles(2, 4096, 4),
    (6144, 4096, False, 4): SkinnyTiles(64, 256, 1, 4, 3),
    (6144, 4096, False, 8): SkinnyTiles(64, 256, 1, 4, 6),
    (6144, 4096, False, 16): SkinnyTiles(64, 128, 1, 4, 6),
    (6144, 4096, False, 32): SkinnyTiles(64, 128, 1, 4, 5),
    (6144, 4096, False, 64): SkinnyTiles(64, 128, 1, 4, 7),
    (6144, 4096, False, 128): CuBLAS,
    (6144, 4096, False, 256): CuBLAS,
    (4096, 4096, False, 1): VectorTiles(8, 4096, 8),
    (4096, 4096, False, 2): VectorTiles(4, 4096, 8),
    (4096, 4096, False, 4): SkinnyTiles(64, 128, 4, 4, 6),
    (4096, 4096, False, 8): SkinnyTiles(64, 128, 4, 4, 6),
    (4096, 4096, False, 16): SkinnyTiles(64, 128, 2, 4, 6),
    (4096, 4096, False, 32): SkinnyTiles(64, 128, 2, 4, 5),
    (4096, 4096, False, 64): SkinnyTiles(64, 128, 2, 4, 4),
    (4096, 4096, False, 128): SkinnyTiles(64, 128, 1, 4, 7, 64),
    (4096, 4096, False, 256): CuBLAS,
    (28672, 4096, True, 1): VectorTiles(2, 4096, 4),
    (28672, 4096, True, 2): SkinnyTiles(32, 256, 1, 4, 3),
    (28672, 4096, True, 4): SkinnyTiles(32, 256, 1, 4, 3),
    (28672, 4096, True, 8): SkinnyTiles(32, 256, 1, 4, 3),
    (28672, 4096, True, 16): SkinnyTiles(64, 128, 1, 4, 3),
    (28672, 4096, True, 32): SkinnyTiles(64, 64, 1, 4, 4),
    (28672, 4096, True, 64): SkinnyTiles(64, 64, 1, 4, 5),
    (28672, 4096, True, 128): SkinnyTiles(64, 64, 1, 8, 3, 128),
    (28672, 4096, True, 256): CuBLAS,
    (4096, 14336, False, 1): SkinnyTiles(64, 256, 1, 4, 6),
    (4096, 14336, False, 2): SkinnyTiles(64, 128, 4, 4, 6),
    (4096, 14336, False, 4): SkinnyTiles(64, 128, 4, 4, 6),
    (4096, 14336, False, 8): SkinnyTiles(64, 256, 2, 4, 6),
    (4096, 14336, False, 16): SkinnyTiles(64, 128, 2, 4, 6),
    (4096, 14336, False, 32): SkinnyTiles(64, 128, 2, 4, 5),
    (4096, 14336, False, 64): SkinnyTiles(64, 128, 2, 4, 7),
    (4096, 14336, False, 128): CuBLAS,
    (4096, 14336, False, 256): CuBLAS,
    (128256, 4096, False, 1): VectorTiles(1, 4096, 8),
    (128256, 4096, False, 2): VectorTiles(2, 4096, 4),
    (128256, 4096, False, 4): SkinnyTiles(64, 256, 1, 4, 3),
    (128256, 4096, False, 8): SkinnyTiles(64, 128, 1, 4, 4),
    (128256, 4096, False, 16): SkinnyTiles(128, 128, 1, 4, 3),
    (128256, 4096, False, 32): SkinnyTiles(64, 128, 1, 4, 3),
    (128256, 4096, False, 64): SkinnyTiles(128, 64, 1, 4, 5),
    (128256, 4096, False, 128): SkinnyTiles(128, 64, 1, 8, 3, 128),
    (128256, 4096, False, 256): CuBLAS,
    (4096, 1024, False, 1): VectorTiles(8, 1024, 4),
    (4096, 1024, False, 2): VectorTiles(4, 1024, 4),
    (4096, 1024, False, 4): SkinnyTiles(64, 256, 1, 4, 6),
    (4096, 1024, False, 8): SkinnyTiles(32, 256, 1, 4, 5),
    (4096, 1024, False, 16): SkinnyTiles(64, 128, 1, 4, 6),
    (4096, 1024, False, 32): SkinnyTiles(64, 128, 1, 4, 5),
    (4096, 1024, False, 64): SkinnyTiles(64, 128, 1, 4, 4),
    (4096, 1024, False, 128): SkinnyTiles(64, 128, 1, 4, 4, 64),
    (4096, 1024, False, 256): SkinnyTiles(128, 64, 1, 4, 5, 64),
    (1024, 2048, False, 1): VectorTiles(2, 2048, 4),
    (1024, 2048, False, 2): VectorTiles(2, 2048, 8),
    (1024, 2048, False, 4): VectorTiles(2, 2048, 4),
    (1024, 2048, False, 8): SkinnyTiles(64, 256, 4, 4, 6),
    (1024, 2048, False, 16): SkinnyTiles(64, 128, 4, 4, 6),
    (1024, 2048, False, 32): SkinnyTiles(64, 128, 4, 4, 5),
    (1024, 2048, False, 64): SkinnyTiles(32, 256, 4, 4, 3),
    (1024, 2048, False, 128): SkinnyTiles(32, 256, 2, 4, 3, 64),
    (1024, 2048, False, 256): SkinnyTiles(32, 256, 1, 4, 3, 64),
    (6144, 1024, True, 1): VectorTiles(4, 1024, 4),
    (6144, 1024, True, 2): VectorTiles(4, 1024, 4),
    (6144, 1024, True, 4): SkinnyTiles(32, 128, 1, 4, 4),
    (6144, 1024, True, 8): SkinnyTiles(64, 128, 1, 4, 6),
    (6144, 1024, True, 16): SkinnyTiles(64, 128, 1, 4, 6),
    (6144, 1024, True, 32): SkinnyTiles(64, 64, 1, 4, 6),
    (6144, 1024, True, 64): SkinnyTiles(32, 128, 1, 4, 4),
    (6144, 1024, True, 128): SkinnyTiles(64, 64, 1, 4, 5, 64),
    (6144, 1024, True, 256): SkinnyTiles(64, 64, 1, 8, 4, 128),
    (1024, 3072, False, 1): VectorTiles(4, 4096, 4),
    (1024, 3072, False, 2): VectorTiles(4, 4096, 8),
    (1024, 3072, False, 4): VectorTiles(2, 2048, 4),
    (1024, 3072, False, 8): SkinnyTiles(64, 256, 4, 4, 6),
    (1024, 3072, False, 16): SkinnyTiles(64, 128, 4, 4, 6),
    (1024, 3072, False, 32): SkinnyTiles(64, 128, 4, 4, 5),
    (1024, 3072, False, 64): SkinnyTiles(32, 256, 4, 4, 3),
    (1024, 3072, False, 128): SkinnyTiles(64, 128, 4, 4, 4, 64),
    (1024, 3072, False, 256): SkinnyTiles(64, 128, 2, 4, 4, 64),
    (151936, 1024, False, 1): VectorTiles(4, 1024, 4),
    (151936, 1024, False, 2): VectorTiles(4, 1024, 4),
    (151936, 1024, False, 4): SkinnyTiles(64, 128, 1, 4, 6),
    (151936, 1024, False, 8): SkinnyTiles(64, 128, 1, 4, 6),
    (151936, 1024, False, 16): SkinnyTiles(64, 128, 1, 4, 4),
    (151936, 1024, False, 32): SkinnyTiles(64, 128, 1, 4, 3),
    (151936, 1024, False, 64): SkinnyTiles(64, 128, 1, 4, 3),
    (151936, 1024, False, 128): CuBLAS,
    (151936, 1024, False, 256): CuBLAS,
}
# fmt: on


def bucket(num_tokens: int) -> int:
    """The smallest of BUCKETS that holds this many rows, at most 512."""
    return next(size for size in BUCKETS if size >= num_tokens)


@cache
def choose(num_tokens: int, weight_rows: int, num_in: int, *, gated: bool) -> Tiles | None:
    """The tiles for x [num_tokens, num_in] @ weight [weight_rows, num_in].T; None where cuBLAS is the better choice."""
    if not 0 < num_tokens <= BUCKETS[-1]:
        return None
    size = bucket(num_tokens)
    measured = MEASURED.get((weight_rows, num_in, gated, size))
    if measured is not None:
        return None if isinstance(measured, type) else measured
    num_out = weight_rows // 2 if gated else weight_rows
    if size <= MAX_VECTOR_TOKENS:
        return _vector_rule(size, num_out, num_in, gated=gated)
    if size <= MAX_SKINNY_TOKENS:
        return _skinny_rule(size, num_out, num_in, gated=gated)
    return None


def partial_elements(tiles: SkinnyTiles, num_tokens: int, weight_rows: int) -> int:
    """Float32 elements of scratch that a split product takes at most; 0 where it is not split."""
    if tiles.split_k == 1:
        return 0
    block_tokens = tiles.tokens_per_program(num_tokens)
    tokens = -(-num_tokens // block_tokens) * block_tokens
    return tiles.split_k * tokens * (weight_rows + 2 * tiles.block_n)


def _vector_rule(size: int, num_out: int, num_in: int, *, gated: bool) -> VectorTiles:
    """All inputs at once up to 4096 of them; 128 bytes of weights for each thread, half of that in a loop.

    Rows per program are halved until there are two programs for each multiprocessor.
    """
    num_warps = 8 if num_in > 1024 else 4
    at_once = _power_of_two_above(num_in)
    block_k = max(256 * num_warps, at_once if at_once <= 4096 else 0)
    wanted_per_thread = 64 if block_k >= num_in else 32
    elements_per_thread = block_k // (32 * num_warps)
    block_n = max(1, wanted_per_thread // (elements_per_thread * size * (2 if gated else 1)))
    while block_n > 2 and num_out < 2 * _WANTED_PROGRAMS * block_n:
        block_n //= 2
    return VectorTiles(block_n, block_k, num_warps)


def _skinny_rule(size: int, num_out: int, num_in: int, *, gated: bool) -> SkinnyTiles:
    """64 rows of the weight, the fewest that can be the tensor cores' left operand, and stages of 16 KB of it.

    Where that makes fewer programs than there are multiprocessors the inputs are split, if each program keeps enough.
    """
    halves = 2 if gated else 1
    block_n = 64
    split_k = 1
    while split_k < 4 and num_out * split_k < _WANTED_PROGRAMS * block_n and num_in > 1024 * split_k:
        split_k *= 2
    block_k = min(_STAGE_BYTES // (2 * block_n * halves), _power_of_two_above(num_in))
    stage_bytes = 2 * block_k * (block_n * halves + max(8, size))
    num_stages = 1 + max(2, min(5, _PIPELINE_BYTES // stage_bytes))
    return SkinnyTiles(block_n, block_k, split_k, 4, num_stages)


def _power_of_two_above(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
