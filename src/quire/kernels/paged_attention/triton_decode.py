"""Attention of single queries. All query heads of a key head are the rows of one product, so a key is read once.

    grid: (key heads, decodes, splits)

    context     |-- split 0 --|-- split 1 --|- split 2 -|        each a few tiles of keys, one program
    workspace        part          part          part
    counter           1             2             3 = all: the program that counted it merges the parts, in order

The length of a split is worked out from the real context, on the device: a graph that was captured for the longest
context does no more work than a short one needs, and spreads that evenly. Programs without a split leave at once.
"""

import torch
import triton
import triton.language as tl

from quire.kernels import programmatic_launch
from quire.kernels.paged_attention.cuda_config import DecodeConfig, crowd_config, decode_config, num_splits
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

_MIN_ROWS = 16
"""Of a product on tensor cores."""
_MERGE_ELEMENTS = 4096
"""Of partial results that a program holds at a time."""
_MAX_MERGED = 16


@triton.jit
def _merge(
    partials,
    statistics,
    output_row,
    num_parts,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    MERGED: tl.constexpr,
):
    """Merges the parts of one sequence and key head, MERGED at a time, always in the same order."""
    head = tl.arange(0, GROUP_ROWS)
    dim = tl.arange(0, DIMS)
    inside = (head < GROUP)[:, None] & (dim < HEAD_DIM)[None, :]
    row_offsets = head[:, None] * HEAD_DIM + dim[None, :]
    largest = tl.full([GROUP_ROWS], LOWEST, tl.float32)
    total = tl.zeros([GROUP_ROWS], tl.float32)
    attended = tl.zeros([GROUP_ROWS, DIMS], tl.float32)
    for first in range(0, num_parts, MERGED):
        part = first + tl.arange(0, MERGED)
        is_head = (part < num_parts)[:, None] & (head < GROUP)[None, :]
        # Not from the first-level cache: other multiprocessors wrote these.
        part_statistics = statistics + part[:, None] * (2 * GROUP) + head[None, :]
        part_largest = tl.load(part_statistics, mask=is_head, other=LOWEST, cache_modifier=".cg")
        part_total = tl.load(part_statistics + GROUP, mask=is_head, other=0.0, cache_modifier=".cg")
        part_attended = tl.load(
            partials + part[:, None, None] * (GROUP * HEAD_DIM) + row_offsets[None, :, :],
            mask=(part < num_parts)[:, None, None] & inside[None, :, :],
            other=0.0,
            cache_modifier=".cg",
        )
        new_largest = tl.maximum(largest, tl.max(part_largest, axis=0))
        rescale = tl.exp2(largest - new_largest)
        part_rescale = tl.exp2(part_largest - new_largest[None, :])
        total = total * rescale + tl.sum(part_total * part_rescale, axis=0)
        attended = attended * rescale[:, None] + tl.sum(part_attended * part_rescale[:, :, None], axis=0)
        largest = new_largest
    # Rows beyond the group have no weights.
    merged = attended / tl.where(head < GROUP, total, 1.0)[:, None]
    tl.store(output_row + row_offsets, merged.to(output_row.dtype.element_ty), mask=inside)


@triton.jit
def _find_split(
    context,
    split,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    MIN_SPLIT: tl.constexpr,
    FIXED_SPLITS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
):
    """Where split number `split` of a context lies.

    Returns:
        first_visible: The first position that the query sees.
        start: The first position of the split, a multiple of TILE; maybe before the first visible one.
        end: Behind the split's last position; not behind `start` if there is no such split.
        num_parts: Splits that the context has.
    """
    first_visible = 0
    if WINDOW > 0:
        first_visible = tl.maximum(context - WINDOW, 0)
    origin = first_visible // TILE * TILE
    split_tokens = context - origin
    num_parts = 1
    if IS_SPLIT:
        divisor = FIXED_SPLITS if FIXED_SPLITS > 0 else tl.num_programs(2)
        split_tokens = tl.maximum(tl.cdiv(tl.cdiv(context - origin, divisor), TILE) * TILE, MIN_SPLIT)
        num_parts = tl.cdiv(context - origin, split_tokens)
    start = origin + split * split_tokens
    return first_visible, start, tl.minimum(start + split_tokens, context), num_parts


@triton.jit
def _hand_over(
    partials,
    statistics,
    counters,
    output_row,
    unit,
    split,
    num_parts,
    largest,
    total,
    attended,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    MERGED: tl.constexpr,
):
    """Leaves a part in the workspace of `unit`, a sequence and key head; merges the parts if it is the last."""
    head = tl.arange(0, ROWS)
    dim = tl.arange(0, DIMS)
    first_part = unit.to(tl.int64) * tl.num_programs(2)
    partials += first_part * (GROUP * HEAD_DIM)
    statistics += first_part * (2 * GROUP)
    part = partials + split * (GROUP * HEAD_DIM) + head[:, None] * HEAD_DIM + dim[None, :]
    tl.store(part, attended, mask=(head < GROUP)[:, None] & (dim < HEAD_DIM)[None, :])
    tl.store(statistics + split * (2 * GROUP) + head, largest, mask=head < GROUP)
    tl.store(statistics + split * (2 * GROUP) + GROUP + head, total, mask=head < GROUP)
    # All threads have stored their share before one of them counts the part.
    tl.debug_barrier()
    num_before = tl.atomic_add(counters + unit, 1, sem="acq_rel")
    if num_before == num_parts - 1:
        _merge(partials, statistics, output_row, num_parts, HEAD_DIM, DIMS, GROUP, GROUP_ROWS, MERGED)
        tl.store(counters + unit, 0)


@triton.jit(do_not_specialize=["decodes", "table_stride"])
def _decode_kernel(
    output,
    query,
    key_cache,
    value_cache,
    decodes,
    block_tables,
    partials,
    statistics,
    counters,
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
    GROUP_ROWS: tl.constexpr,
    TILE: tl.constexpr,
    MIN_SPLIT: tl.constexpr,
    FIXED_SPLITS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    MERGED: tl.constexpr,
    PDL: tl.constexpr,
):
    """One split of one sequence for the heads of one key head.

    ROWS and GROUP_ROWS are the group, rounded up for the product and to a power of two; DIMS is HEAD_DIM rounded up.
    The context is divided by FIXED_SPLITS, or by the grid's splits if that is 0. WINDOW 0: none.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    group: tl.constexpr = HEADS // KV_HEADS
    kv_head, sequence, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    table_row = tl.load(decodes + sequence * 3).to(tl.int64)
    flat_row = tl.load(decodes + sequence * 3 + 1).to(tl.int64)
    context = tl.load(decodes + sequence * 3 + 2)
    first_visible, start, end, num_parts = _find_split(context, split, WINDOW, TILE, MIN_SPLIT, FIXED_SPLITS, IS_SPLIT)

    head = tl.arange(0, ROWS)
    dim = tl.arange(0, DIMS)
    offsets = head[:, None] * HEAD_DIM + dim[None, :]
    inside = (head < group)[:, None] & (dim < HEAD_DIM)[None, :]
    heads_row = flat_row * (HEADS * HEAD_DIM) + kv_head * (group * HEAD_DIM)
    output_row = output + heads_row
    if start >= end:
        if context == 0 and split == 0:
            tl.store(output_row + offsets, tl.zeros([ROWS, DIMS], output.dtype.element_ty), mask=inside)
        return

    queries = tl.load(query + heads_row + offsets, mask=inside, other=0.0)
    block_table = block_tables + table_row * table_stride
    largest = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    attended = tl.zeros([ROWS, DIMS], tl.float32)
    blocks = load_blocks(block_table, start, end, TILE, BLOCK_SIZE)
    for tile in range(start, end, TILE):
        position = tile + tl.arange(0, TILE)
        is_visible = position < end
        if WINDOW > 0:
            is_visible = is_visible & (position >= first_visible)
        entries = entry_offsets(blocks, tile, kv_head, KV_HEADS, HEAD_DIM, BLOCK_SIZE, TILE)
        blocks = load_blocks(block_table, tile + TILE, end, TILE, BLOCK_SIZE)
        keys = load_entries(key_cache, entries, is_visible, HEAD_DIM, DIMS).to(queries.dtype)
        values = load_entries(value_cache, entries, is_visible, HEAD_DIM, DIMS).to(queries.dtype)
        scores = raw_scores(queries, keys, inner_factor, HAS_SOFT_CAP)
        scores = tl.where(is_visible[None, :], scores, float("-inf"))
        largest, total, attended = add_tile(scores, values, factor, largest, total, attended)

    if num_parts == 1:
        tl.store(output_row + offsets, (attended / total[:, None]).to(output.dtype.element_ty), mask=inside)
    elif IS_SPLIT:
        _hand_over(
            partials,
            statistics,
            counters,
            output_row,
            sequence * KV_HEADS + kv_head,
            split,
            num_parts,
            largest,
            total,
            attended,
            HEAD_DIM,
            DIMS,
            group,
            ROWS,
            GROUP_ROWS,
            MERGED,
        )


def decode(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    metadata: CudaAttentionMetadata,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
    output: torch.Tensor,
    config: DecodeConfig | None = None,
) -> None:
    """Fills in the rows of `output` [T, H, D] that `metadata.decodes` names; see `paged_attention.attend`.

    The workspace must have been made for the same `config`.
    """
    num_decodes, num_kv_heads = metadata.decodes.shape[0], key_cache.shape[2]
    config = config or crowd_config(decode_config(query.shape[2], query.dtype), num_decodes, num_kv_heads)
    workspace = metadata.workspace
    longest = metadata.max_context_length
    if sliding_window is not None:
        longest = min(longest, sliding_window + config.tile_tokens)
    splits = num_splits(num_decodes, num_kv_heads, longest, workspace.num_multiprocessors, config)
    group_size = query.shape[1] // num_kv_heads
    group_rows = triton.next_power_of_2(group_size)
    dims = triton.next_power_of_2(query.shape[2])
    num_units = num_decodes * num_kv_heads
    assert num_units <= workspace.counters.numel() and (
        splits == 1 or num_units * splits * group_size * query.shape[2] <= workspace.partials.numel()
    ), f"{num_decodes} decodes in {splits} splits do not fit the workspace"
    _decode_kernel[(num_kv_heads, num_decodes, splits)](
        output,
        query,
        key_cache,
        value_cache,
        metadata.decodes,
        metadata.block_tables,
        workspace.partials,
        workspace.statistics,
        workspace.counters,
        metadata.block_tables.stride(0),
        *score_factors(scale, soft_cap),
        **model_constants(query, key_cache, sliding_window, soft_cap),
        ROWS=max(_MIN_ROWS, group_rows),
        GROUP_ROWS=group_rows,
        TILE=config.tile_tokens,
        MIN_SPLIT=config.min_split_tokens,
        FIXED_SPLITS=config.max_splits if config.is_batch_invariant else 0,
        IS_SPLIT=config.is_batch_invariant or splits > 1,
        MERGED=max(1, min(_MAX_MERGED, _MERGE_ELEMENTS // (group_rows * dims))),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **programmatic_launch.options(query),
    )
