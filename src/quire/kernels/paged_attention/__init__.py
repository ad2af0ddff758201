"""Attention over a paged KV cache: prompts, parts of prompts and single tokens in one call.

A step's tokens stand on one flat axis, sequence after sequence. Sequence s brings its last `query_lengths[s]`
tokens, all its keys and values lie in the blocks that its row of the block tables names:

    flat axis   | s0: 5 tokens of a prompt | s1: 1 | s2: 1 | ...
    block table   s0: [7, 2]   s1: [4, 9, 1]   s2: [3]        token i of a sequence: block i // B, slot i % B

What depends on lengths and tables is worked out once per step by `prepare`; `write_kv` and `attend` then run per
layer. Blocks hold stale or uninitialised slots behind a sequence's end; those are never read.

Read first: this file, `reference.py`, then `plan.py` and `torch_cpu.py`.
"""

from collections.abc import Sequence

import torch

from quire.kernels.paged_attention import torch_cpu
from quire.kernels.paged_attention.plan import AttentionMetadata

__all__ = ["AttentionMetadata", "attend", "prepare", "write_kv"]


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
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """softmax(query · keys * scale) · values, causal within each sequence. Reads the cache, modifies nothing.

    Query head h reads key head h // (H / H_kv). The keys and values of this step must have been written.

    Args:
        query: [T, H, D].
        key_cache: [num_blocks, block_size, H_kv, D].
        value_cache: The same.
        metadata: From `prepare` of this step.
        scale: Factor of the scores.
        sliding_window: Positions that a token sees, itself included; None for all. One of those given to `prepare`.

    Returns:
        [T, H, D] contiguous, of the query's dtype.
    """
    assert query.dim() == 3 and query.shape[0] == metadata.num_tokens and query.shape[2] == key_cache.shape[3], (
        f"query {tuple(query.shape)}, prepared for {metadata.num_tokens} tokens, cache {tuple(key_cache.shape)}"
    )
    return torch_cpu.attend(query, key_cache, value_cache, metadata, scale, sliding_window)
