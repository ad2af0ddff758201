"""What the attention kernels share: where keys lie, and the softmax that sees its scores tile by tile.

Scores are kept in units of log2 times `factor`, so that a weight is exp2 of one multiply-add.
"""

import math

import torch
import triton
import triton.language as tl

from quire.kernels import programmatic_launch

# Finite: the difference of two of them is 0, not NaN. Below any score.
LOWEST: tl.constexpr = tl.constexpr(-1.0e30)


@triton.jit
def load_blocks(block_table, tile, end, TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """The block [TILE] of each position from `tile`, a multiple of TILE; 0 behind `end`.

    Called one tile ahead: a load whose address came from a load of the same iteration would be pipelined at half the
    depth.
    """
    index = tl.arange(0, TILE)
    return tl.load(block_table + tile // BLOCK_SIZE + index // BLOCK_SIZE, mask=tile + index < end, other=0)


@triton.jit
def entry_offsets(
    blocks,
    tile,
    kv_head,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Offset in a cache of the entry of each position from `tile`, a multiple of TILE; [TILE] int64.

    One of TILE and BLOCK_SIZE divides the other.
    """
    within = tile % BLOCK_SIZE + tl.arange(0, TILE) % BLOCK_SIZE
    return blocks.to(tl.int64) * (BLOCK_SIZE * KV_HEADS * HEAD_DIM) + (within * KV_HEADS + kv_head) * HEAD_DIM


@triton.jit
def load_entries(cache, offsets, is_read, HEAD_DIM: tl.constexpr, DIMS: tl.constexpr):
    """Keys or values [TILE, DIMS]; zeros where not `is_read` and behind HEAD_DIM."""
    dim = tl.arange(0, DIMS)[None, :]
    is_element = is_read[:, None] & (dim < HEAD_DIM) if HEAD_DIM < DIMS else is_read[:, None]
    return tl.load(cache + offsets[:, None] + dim, mask=is_element, other=0.0)


@triton.jit
def raw_scores(query, keys, inner_factor, HAS_SOFT_CAP: tl.constexpr):
    """query · keys, or tanh(query · keys * inner_factor): [rows, D], [tile, D] -> [rows, tile] float32."""
    scores = tl.dot(query, tl.trans(keys), input_precision="ieee")
    if HAS_SOFT_CAP:
        # Exact at both ends: exp2 is then infinity or 0.
        scores = 1.0 - 2.0 / (tl.exp2(scores * (2.0 * 1.4426950408889634 * inner_factor)) + 1.0)
    return scores


@triton.jit
def add_tile(scores, values, factor, largest, total, attended):
    """Takes a tile of scores [rows, tile] and values [tile, D] into the sums.

    Returns:
        largest: [rows], the largest score so far times factor.
        total: [rows], the sum of the weights relative to it.
        attended: [rows, D], the sum of the weighted values.
    """
    new_largest = tl.maximum(largest, tl.max(scores, axis=1) * factor)
    rescale = tl.exp2(largest - new_largest)
    weights = tl.exp2(scores * factor - new_largest[:, None])
    total = total * rescale + tl.sum(weights, axis=1)
    attended = tl.dot(weights.to(values.dtype), values, attended * rescale[:, None], input_precision="ieee")
    return new_largest, total, attended


def score_factors(scale: float, soft_cap: float | None) -> tuple[float, float]:
    """(inner factor, factor) for the kernels: score * log2(e) = factor * raw score."""
    assert scale > 0 and (soft_cap is None or soft_cap > 0), f"scale {scale}, soft cap {soft_cap}"
    if soft_cap is None:
        return 1.0, scale * math.log2(math.e)
    return scale / soft_cap, soft_cap * math.log2(math.e)


def model_constants(
    query: torch.Tensor, key_cache: torch.Tensor, sliding_window: int | None, soft_cap: float | None
) -> dict[str, int]:
    """The kernels' constants that belong to a layer."""
    block_size = key_cache.shape[1]
    assert block_size & (block_size - 1) == 0, f"blocks of {block_size} tokens, not a power of two"
    assert sliding_window is None or sliding_window > 0, f"a window of {sliding_window} tokens"
    return {
        "HEADS": query.shape[1],
        "KV_HEADS": key_cache.shape[2],
        "HEAD_DIM": query.shape[2],
        "DIMS": triton.next_power_of_2(query.shape[2]),
        "BLOCK_SIZE": block_size,
        "WINDOW": sliding_window or 0,
        "HAS_SOFT_CAP": soft_cap is not None,
        "PDL": programmatic_launch.is_supported(query.device),
    }
