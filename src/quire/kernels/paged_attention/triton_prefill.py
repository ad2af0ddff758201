"""Attention of tiles of consecutive queries of one sequence.

Rows of the products are queries times the heads that share a key head, so a key is read once per tile:

    row     0      1            G      G+1                grid: (tiles, key heads), longest first
    query   q, h0  q, h1  ...   q+1, h0  q+1, h1  ...

Keys come in tiles from the first that any row sees to the last. Only tiles at the ends pay for a mask:

    keys    | window's edge, masked | seen by all rows | around the diagonal, masked |
"""

import torch
import triton
import triton.language as tl

from quire.kernels import programmatic_launch
from quire.kernels.paged_attention.cuda_config import PrefillConfig, prefill_config
from quire.kernels.paged_attention.cuda_plan import CudaAttentionMetadata
from quire.kernels.paged_attention.triton_softmax import (
    LOWEST,
    add_tile,
    entry_offsets,
    load_blocks,
    load_entries,
    model_constants,
    raw_scores,
    score_factors,
)


@triton.jit
def _locate_rows(
    tile_plan,
    kv_head,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Offsets [ROWS, DIMS] of a tile's elements in query and output, and whether they exist.

    The loads are volatile so that the offsets are worked out anew for the output: kept through the loop over the keys
    they would take registers that the products need.
    """
    flat_row = tl.load(tile_plan + 1, volatile=True).to(tl.int64)
    num_queries = tl.load(tile_plan + 2, volatile=True)
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, DIMS)
    token = row // GROUP
    row_offsets = flat_row * (HEADS * HEAD_DIM) + kv_head * (GROUP * HEAD_DIM)
    row_offsets += token * (HEADS * HEAD_DIM) + row % GROUP * HEAD_DIM
    inside = (token < num_queries)[:, None] & (dim < HEAD_DIM)[None, :]
    return row_offsets[:, None] + dim[None, :], inside


@triton.jit(do_not_specialize=["tiles", "table_stride"])
def _prefill_kernel(
    output,
    query,
    key_cache,
    value_cache,
    tiles,
    block_tables,
    table_stride,
    inner_factor,
    factor,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    """One tile of queries for the heads of one key head. DIMS is HEAD_DIM rounded up. WINDOW 0: none."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    group: tl.constexpr = HEADS // KV_HEADS
    kv_head = tl.program_id(1)
    tile_plan = tiles + tl.program_id(0) * 4
    table_row = tl.load(tile_plan).to(tl.int64)
    num_queries = tl.load(tile_plan + 2)
    first_position = tl.load(tile_plan + 3)
    context = first_position + num_queries
    # Rows behind the last query stand in for it, so that they see keys; nobody reads them.
    row_position = first_position + tl.minimum(tl.arange(0, ROWS) // group, num_queries - 1)
    offsets, inside = _locate_rows(tile_plan, kv_head, HEADS, HEAD_DIM, DIMS, group, ROWS)
    queries = tl.load(query + offsets, mask=inside, other=0.0)
    block_table = block_tables + table_row * table_stride

    first_visible = 0
    if WINDOW > 0:
        first_visible = tl.maximum(first_position - WINDOW + 1, 0)
    first_tile = first_visible // TILE * TILE
    blocks = load_blocks(block_table, first_tile, context, TILE, BLOCK_SIZE)
    largest = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    attended = tl.zeros([ROWS, DIMS], tl.float32)
    for tile in range(first_tile, context, TILE):
        position = tile + tl.arange(0, TILE)
        is_read = position < context
        if WINDOW > 0:
            is_read = is_read & (position >= first_visible)
        entries = entry_offsets(blocks, tile, kv_head, KV_HEADS, HEAD_DIM, BLOCK_SIZE, TILE)
        blocks = load_blocks(block_table, tile + TILE, context, TILE, BLOCK_SIZE)
        keys = load_entries(key_cache, entries, is_read, HEAD_DIM, DIMS).to(queries.dtype)
        values = load_entries(value_cache, entries, is_read, HEAD_DIM, DIMS).to(queries.dtype)
        scores = raw_scores(queries, keys, inner_factor, HAS_SOFT_CAP)
        needs_mask = tile + TILE > first_position + 1
        if WINDOW > 0:
            needs_mask = needs_mask | (tile < context - WINDOW)
        if needs_mask:
            is_seen = position[None, :] <= row_position[:, None]
            if WINDOW > 0:
                is_seen = is_seen & (position[None, :] > row_position[:, None] - WINDOW)
            scores = tl.where(is_seen, scores, float("-inf"))
        largest, total, attended = add_tile(scores, values, factor, largest, total, attended)
    attended = attended / total[:, None]
    offsets, inside = _locate_rows(tile_plan, kv_head, HEADS, HEAD_DIM, DIMS, group, ROWS)
    tl.store(output + offsets, attended.to(output.dtype.element_ty), mask=inside)


def prefill(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    metadata: CudaAttentionMetadata,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
    output: torch.Tensor,
    config: PrefillConfig | None = None,
) -> None:
    """Fills in the rows of `output` [T, H, D] that `metadata.tiles` cover; see `paged_attention.attend`.

    The tiles must have been made for the same `config`.
    """
    config = config or prefill_config(query.shape[2], query.dtype)
    _prefill_kernel[(metadata.tiles.shape[0], key_cache.shape[2])](
        output,
        query,
        key_cache,
        value_cache,
        metadata.tiles,
        metadata.block_tables,
        metadata.block_tables.stride(0),
        *score_factors(scale, soft_cap),
        **model_constants(query, key_cache, sliding_window, soft_cap),
        ROWS=config.tile_rows,
        TILE=config.tile_keys,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        maxnreg=config.max_registers,
        **programmatic_launch.options(query),
    )
