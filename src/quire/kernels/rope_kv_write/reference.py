"""The op as a chain of references, then one token after the other into the cache."""

import torch

from quire.kernels.rms_norm.reference import rms_norm
from quire.kernels.rope.reference import rope


def rope_kv_write(
    qkv: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor],
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    query_norm: torch.Tensor | None = None,
    key_norm: torch.Tensor | None = None,
    epsilon: float = 0.0,
) -> torch.Tensor:
    """See `quire.kernels.rope_kv_write.rope_kv_write`; `rotation` is from `quire.kernels.rope.reference.rope_tables`.

    Slots of -1 are skipped.
    """
    heads = qkv.double().view(qkv.shape[0], num_heads + 2 * num_kv_heads, -1)
    query, key, value = heads.tensor_split((num_heads, num_heads + num_kv_heads), dim=1)
    if query_norm is not None:
        query = rms_norm(query, query_norm, epsilon)
    if key_norm is not None:
        key = rms_norm(key, key_norm, epsilon)
    query, key = rope(query, *rotation), rope(key, *rotation)
    block_size = key_cache.shape[1]
    for token, slot in enumerate(slot_mapping.tolist()):
        if slot >= 0:
            key_cache[slot // block_size, slot % block_size] = key[token]
            value_cache[slot // block_size, slot % block_size] = value[token]
    return query.to(qkv.dtype)
