"""Attention over a paged KV cache: prompts, parts of prompts and single tokens in one call.

A step's tokens stand on one flat axis, sequence after sequence. Sequence s brings its last `query_lengths[s]`
tokens, all its keys and values lie in the blocks that its row of the block tables names:

    flat axis   | s0: 5 tokens of a prompt | s1: 1 | s2: 1 | ...
    block table   s0: [7, 2]   s1: [4, 9, 1]   s2: [3]        token i of a sequence: block i // B, slot i % B

What depends on lengths and tables is worked out once per step: on a CPU by `prepare`, for a GPU in `cuda_plan.py`.
`write_kv` (on a GPU `rope_kv_write`) and `attend` then run per layer. Blocks hold stale or uninitialised slots behind a
sequence's end; those are never read.

Read first: this file, `reference.py`, then `plan.py` and `torch_cpu.py`, or `cuda_plan.py` and `triton_decode.py`.
"""

from collections.abc import Sequence

import torch

from quire.kernels.native.recording import Recorded
from quire.kernels.paged_attention import torch_cpu
from quire.kernels.paged_attention.cuda_plan import CudaAttentionMetadata
from quire.kernels.paged_attention.plan import AttentionMetadata

__all__ = ["AttentionMetadata", "CudaAttentionMetadata", "attend", "prepare", "write_kv"]


def prepare(
    query_lengths: Sequence[int],
    context_lengths: Sequence[int],
    block_tables: torch.Tensor,
    key_cache: torch.Tensor,
    *,
    dtype: torch.dtype,
    sliding_windows: Sequence[int | None] = (None,),
) -> AttentionMetadata:
    """Works out who reads what in this step. Allocates the buffers that its layers share.

    Args:
        query_lengths: (S) tokens of each sequence in this step, at least 1, in flat order.
        context_lengths: (S) tokens of each sequence after this step.
        block_tables: [S, max_blocks] int32.
        key_cache: [num_blocks, block_size, H_kv, D] of any layer, for its shape and number format.
        dtype: Of the queries.
        sliding_windows: The windows that the model's layers have; see `attend`.
    """
    assert len(query_lengths) == len(context_lengths) == len(block_tables), (
        f"{len(query_lengths)} query lengths, {len(context_lengths)} context lengths, {len(block_tables)} block tables"
    )
    return torch_cpu.prepare(
        query_lengths, context_lengths, block_tables, key_cache, dtype=dtype, sliding_windows=sliding_windows
    )


def write_kv(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """Writes this step's keys and values into their slots. Modifies the caches.

    Args:
        key: [T, H_kv, D].
        value: [T, H_kv, D].
        key_cache: [num_blocks, block_size, H_kv, D] contiguous; may have another number format.
        value_cache: The same.
        slot_mapping: [T] int64; block * block_size + offset of each token.
    """
    assert key.shape == value.shape == (*slot_mapping.shape, *key_cache.shape[2:]), (
        f"key {tuple(key.shape)}, value {tuple(value.shape)}, {len(slot_mapping)} slots, cache {tuple(key_cache.shape)}"
    )
    torch_cpu.write_kv(key, value, key_cache, value_cache, slot_mapping)


def attend(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    metadata: AttentionMetadata | CudaAttentionMetadata,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """softmax(scores) · values, causal within each sequence, scores = query · keys * scale. Does not modify the caches.

    Query head h reads key head h // (H / H_kv). The keys and values of this step must have been written.

    Args:
        query: [T, H, D], contiguous on a GPU.
        key_cache: [num_blocks, block_size, H_kv, D] contiguous.
        value_cache: The same.
        metadata: Of this step, from `prepare`, or for the GPU.
        scale: Factor of the scores, positive.
        sliding_window: Positions that a token sees, itself included; None for all. One of those given to `prepare`.
        soft_cap: Scores become soft_cap * tanh(scores / soft_cap); positive. None for no cap.

    Returns:
        [T, H, D] contiguous, of the query's dtype. Rows of padding are finite.
    """
    if isinstance(query, Recorded):
        return query.recording.attend(query, key_cache, scale, sliding_window, soft_cap)
    assert query.dim() == 3 and query.shape[0] == metadata.num_tokens and query.shape[2] == key_cache.shape[3], (
        f"query {tuple(query.shape)}, prepared for {metadata.num_tokens} tokens, cache {tuple(key_cache.shape)}"
    )
    if isinstance(metadata, CudaAttentionMetadata):
        return _attend_cuda(query, key_cache, value_cache, metadata, scale, sliding_window, soft_cap)
    return torch_cpu.attend(query, key_cache, value_cache, metadata, scale, sliding_window, soft_cap)


def _attend_cuda(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    metadata: CudaAttentionMetadata,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
) -> torch.Tensor:
    """`attend` by two kernels that fill in disjoint rows."""
    from quire.kernels.paged_attention import triton_decode, triton_prefill

    assert query.is_contiguous(), f"query must be contiguous, strides {query.stride()}"
    output = torch.empty_like(query)
    if metadata.tiles.shape[0]:
        triton_prefill.prefill(query, key_cache, value_cache, metadata, scale, sliding_window, soft_cap, output)
    if metadata.decodes.shape[0]:
        triton_decode.decode(query, key_cache, value_cache, metadata, scale, sliding_window, soft_cap, output)
    return output
