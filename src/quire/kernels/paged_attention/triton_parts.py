"""How the contexts of decodes are cut into parts, once per step and window, on the device.

Only there the lengths are known when a graph runs: it was captured for the longest context, and does no more work than
short ones need. Parts are equally long in all sequences, so that contexts of any lengths are spread evenly.
"""

import torch
import triton
import triton.language as tl

from quire.kernels import programmatic_launch
from quire.kernels.paged_attention.cuda_config import DecodeConfig, count_parts
from quire.kernels.paged_attention.cuda_plan import CudaAttentionMetadata

PART_FIELDS: tl.constexpr = tl.constexpr(8)
"""Of an entry: block table row, row of the flat axis, context length, number within the sequence, parts that the
sequence has (0: this is none), first position (a multiple of the tile), position behind the last; one is not used."""

_MIN_SEQUENCES = 128
"""Batches up to this run the same compiled kernel."""


@triton.jit
def first_read(context, WINDOW: tl.constexpr, TILE: tl.constexpr):
    """The first position that is read: a multiple of TILE, maybe before the first one that the query sees."""
    return tl.maximum(context - WINDOW, 0) // TILE * TILE if WINDOW > 0 else context * 0


@triton.jit(do_not_specialize=["num_decodes", "num_entries", "wanted_parts"])
def _parts_kernel(
    decodes,
    parts,
    num_decodes,
    num_entries,
    wanted_parts,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    MIN_PART: tl.constexpr,
    FIXED_PARTS: tl.constexpr,
    SEQUENCES: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program. SEQUENCES is `num_decodes` rounded up. Padding has one part without a token.

    A context has FIXED_PARTS, fewer if it is short; if that is 0, parts of a length that makes `wanted_parts` of all.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    sequence = tl.arange(0, SEQUENCES)
    is_sequence = sequence < num_decodes
    table_row = tl.load(decodes + sequence * 3, mask=is_sequence, other=0)
    flat_row = tl.load(decodes + sequence * 3 + 1, mask=is_sequence, other=0)
    context = tl.load(decodes + sequence * 3 + 2, mask=is_sequence, other=0)
    origin = first_read(context, WINDOW, TILE)
    length = context - origin
    tokens = tl.cdiv(length, FIXED_PARTS) if FIXED_PARTS > 0 else tl.cdiv(tl.sum(length), wanted_parts)
    tokens = tl.maximum(tl.cdiv(tokens, TILE) * TILE, MIN_PART)
    num_parts = tl.where(is_sequence, tl.maximum(tl.cdiv(length, tokens), 1), 0)
    first = tl.cumsum(num_parts, axis=0) - num_parts
    for number in range(tl.max(num_parts)):
        entry = parts + (first + number) * PART_FIELDS
        is_part = number < num_parts
        start = origin + number * tokens
        tl.store(entry, table_row, mask=is_part)
        tl.store(entry + 1, flat_row, mask=is_part)
        tl.store(entry + 2, context, mask=is_part)
        tl.store(entry + 3, number, mask=is_part)
        tl.store(entry + 4, num_parts, mask=is_part)
        tl.store(entry + 5, start, mask=is_part)
        tl.store(entry + 6, tl.minimum(start + tokens, context), mask=is_part)
    for index in range(tl.sum(num_parts), num_entries, SEQUENCES):
        tl.store(parts + (index + sequence) * PART_FIELDS + 4, 0, mask=index + sequence < num_entries)


def find_parts(
    metadata: CudaAttentionMetadata, num_kv_heads: int, sliding_window: int | None, config: DecodeConfig
) -> torch.Tensor | None:
    """The parts of `metadata.decodes`, [P, PART_FIELDS] int32; None where contexts are not cut.

    The first layer of a step that asks has them made for all others with this window.
    """
    num_decodes = metadata.decodes.shape[0]
    longest = metadata.max_context_length
    if sliding_window is not None:
        longest = min(longest, sliding_window + config.tile_tokens)
    wanted_parts, num_entries = count_parts(
        num_decodes, num_kv_heads, longest, metadata.workspace.num_multiprocessors, config
    )
    if num_entries <= num_decodes:
        return None
    parts = metadata.parts.get(sliding_window)
    if parts is None:
        decodes = metadata.decodes
        parts = metadata.parts[sliding_window] = decodes.new_empty((num_entries, PART_FIELDS.value))
        _parts_kernel[(1,)](
            decodes,
            parts,
            num_decodes,
            num_entries,
            wanted_parts,
            WINDOW=sliding_window or 0,
            TILE=config.tile_tokens,
            MIN_PART=config.min_part_tokens,
            FIXED_PARTS=config.max_parts if config.is_batch_invariant else 0,
            SEQUENCES=max(_MIN_SEQUENCES, triton.next_power_of_2(num_decodes)),
            PDL=programmatic_launch.is_supported(decodes.device),
            **programmatic_launch.options(decodes),
        )
    return parts
