"""Paged attention one token and one head at a time, in float64."""

from collections.abc import Sequence

import torch


def write_kv(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """See `quire.kernels.paged_attention.write_kv`."""
    block_size = key_cache.shape[1]
    for token, slot in enumerate(slot_mapping.tolist()):
        key_cache[slot // block_size, slot % block_size] = key[token]
        value_cache[slot // block_size, slot % block_size] = value[token]


def attend(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    query_lengths: Sequence[int],
    context_lengths: Sequence[int],
    block_tables: torch.Tensor,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """See `quire.kernels.paged_attention.attend`; takes what `prepare` takes instead of its metadata."""
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    token = 0
    for sequence, (num_queries, num_tokens) in enumerate(zip(query_lengths, context_lengths, strict=True)):
        for position in range(num_tokens - num_queries, num_tokens):
            first = 0 if sliding_window is None else max(0, position - sliding_window + 1)
            keys = _rows(key_cache, block_tables[sequence], first, position + 1)
            values = _rows(value_cache, block_tables[sequence], first, position + 1)
            output[token] = _attend_one(query[token].double(), keys, values, scale, soft_cap).to(output.dtype)
            token += 1
    return output


def _rows(cache: torch.Tensor, block_table: torch.Tensor, first: int, end: int) -> torch.Tensor:
    """Entries of the positions [first, end) of a sequence, [end - first, H_kv, D] float64."""
    block_size = cache.shape[1]
    return torch.stack(
        [cache[block_table[position // block_size], position % block_size] for position in range(first, end)]
    ).double()


def _attend_one(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, soft_cap: float | None
) -> torch.Tensor:
    """One token's attention: query [H, D], keys and values [L, H_kv, D] -> [H, D]."""
    heads_per_key = query.shape[0] // keys.shape[1]
    heads = []
    for head in range(query.shape[0]):
        scores = keys[:, head // heads_per_key] @ query[head] * scale
        if soft_cap is not None:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        heads.append(torch.softmax(scores, dim=0) @ values[:, head // heads_per_key])
    return torch.stack(heads)
