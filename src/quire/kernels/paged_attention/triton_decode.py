"""Attention of single queries. All query heads of a key head are the rows of one product, so a key is read once.

    grid: (key heads, parts of all sequences)

    sequence    |---- 0 ----|------- 1 -------|-- 2 --|
    part        |-- 0 --|-1-|-- 2 --|-- 3 --|4|-- 5 --|        each a few tiles of keys, one program
    counter         1    2=all

The program that counts the last part of a sequence merges them, in order; see `triton_parts.py` for how they are cut.
"""

import torch
import triton
import triton.language as tl

from quire.kernels import programmatic_launch
from quire.kernels.paged_attention.cuda_config import DecodeConfig, batch_config, decode_config
from quire.kernels.paged_attention.cuda_plan import CudaAttentionMetadata
from quire.kernels.paged_attention.triton_parts import PART_FIELDS, find_parts, first_read
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
def _hand_over(
    partials,
    statistics,
    counter,
    output_row,
    part,
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
    """Leaves a part in the workspace of its sequence and key head; merges the parts if it is the last to come."""
    head = tl.arange(0, ROWS)
    dim = tl.arange(0, DIMS)
    sums = partials + part * (GROUP * HEAD_DIM) + head[:, None] * HEAD_DIM + dim[None, :]
    tl.store(sums, attended, mask=(head < GROUP)[:, None] & (dim < HEAD_DIM)[None, :])
    tl.store(statistics + part * (2 * GROUP) + head, largest, mask=head < GROUP)
    tl.store(statistics + part * (2 * GROUP) + GROUP + head, total, mask=head < GROUP)
    # All threads have stored their share before one of them counts the part.
    tl.debug_barrier()
    num_before = tl.atomic_add(counter, 1, sem="acq_rel")
    if num_before == num_parts - 1:
        _merge(partials, statistics, output_row, num_parts, HEAD_DIM, DIMS, GROUP, GROUP_ROWS, MERGED)
        tl.store(counter, 0)


@triton.jit
def _find_work(decodes, parts, index, WINDOW: tl.constexpr, TILE: tl.constexpr):
    """What a program computes: part `index` or, where `parts` are None, all of decode `index`.

    Returns:
        table_row: Of the block tables.
        flat_row: Of query and output.
        context: The sequence's tokens; 0 for padding.
        start: The first position to read, a multiple of TILE.
        end: The position behind the last.
        number: Of the part within the sequence.
        num_parts: Of the sequence; 0 if there is no part of this index.
    """
    if parts is not None:
        entry = parts + index * PART_FIELDS
        table_row, flat_row, context = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
        number, num_parts = tl.load(entry + 3), tl.load(entry + 4)
        start, end = tl.load(entry + 5), tl.load(entry + 6)
    else:
        entry = decodes + index * 3
        table_row, flat_row, context = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
        number, num_parts = 0, 1
        start, end = first_read(context, WINDOW, TILE), context
    return table_row.to(tl.int64), flat_row.to(tl.int64), context, start, end, number, num_parts


@triton.jit
def _attend_tiles(
    queries,
    key_cache,
    value_cache,
    block_table,
    kv_head,
    start,
    end,
    first_visible,
    inner_factor,
    factor,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Attention of queries [ROWS, DIMS] to the positions from `start` on; the results of `add_tile`."""
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
    return largest, total, attended


@triton.jit(do_not_specialize=["decodes", "table_stride"])
def _decode_kernel(
    output,
    query,
    key_cache,
    value_cache,
    decodes,
    parts,
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
    MERGED: tl.constexpr,
    PDL: tl.constexpr,
):
    """One of `parts`, or, where these are None, one of `decodes`, for the heads of one key head.

    ROWS and GROUP_ROWS are the group, rounded up for the product and to a power of two; DIMS is HEAD_DIM rounded up.
    WINDOW 0: none.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    group: tl.constexpr = HEADS // KV_HEADS
    kv_head, index = tl.program_id(0), tl.program_id(1)
    table_row, flat_row, context, start, end, number, num_parts = _find_work(decodes, parts, index, WINDOW, TILE)
    if num_parts == 0:
        return

    head = tl.arange(0, ROWS)
    dim = tl.arange(0, DIMS)
    offsets = head[:, None] * HEAD_DIM + dim[None, :]
    inside = (head < group)[:, None] & (dim < HEAD_DIM)[None, :]
    heads_row = flat_row * (HEADS * HEAD_DIM) + kv_head * (group * HEAD_DIM)
    output_row = output + heads_row
    if context == 0:
        tl.store(output_row + offsets, tl.zeros([ROWS, DIMS], output.dtype.element_ty), mask=inside)
        return

    queries = tl.load(query + heads_row + offsets, mask=inside, other=0.0)
    first_visible = tl.maximum(context - WINDOW, 0)
    block_table = block_tables + table_row * table_stride
    largest, total, attended = _attend_tiles(
        queries,
        key_cache,
        value_cache,
        block_table,
        kv_head,
        start,
        end,
        first_visible,
        inner_factor,
        factor,
        KV_HEADS,
        HEAD_DIM,
        DIMS,
        BLOCK_SIZE,
        WINDOW,
        HAS_SOFT_CAP,
        ROWS,
        TILE,
    )
    if num_parts == 1:
        tl.store(output_row + offsets, (attended / total[:, None]).to(output.dtype.element_ty), mask=inside)
    elif parts is not None:
        # The parts of a sequence and key head lie one after the other.
        first = kv_head.to(tl.int64) * tl.num_programs(1) + index - number
        _hand_over(
            partials + first * (group * HEAD_DIM),
            statistics + first * (2 * group),
            counters + first,
            output_row,
            number,
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
    workspace = metadata.workspace
    num_multiprocessors = workspace.num_multiprocessors
    if config is None:
        default = decode_config(query.shape[2], query.dtype)
        config = batch_config(default, num_decodes * num_kv_heads, num_multiprocessors)
    parts = find_parts(metadata, num_kv_heads, sliding_window, config)
    group_size = query.shape[1] // num_kv_heads
    group_rows = triton.next_power_of_2(group_size)
    dims = triton.next_power_of_2(query.shape[2])
    num_programs = num_kv_heads * (num_decodes if parts is None else parts.shape[0])
    assert parts is None or (
        num_programs <= workspace.counters.numel()
        and num_programs * group_size * query.shape[2] <= workspace.partials.numel()
    ), f"{num_decodes} decodes in {num_programs} programs do not fit the workspace"
    _decode_kernel[(num_kv_heads, num_programs // num_kv_heads)](
        output,
        query,
        key_cache,
        value_cache,
        metadata.decodes,
        parts,
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
        MERGED=max(1, min(_MAX_MERGED, _MERGE_ELEMENTS // (group_rows * dims))),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **programmatic_launch.options(query),
    )
