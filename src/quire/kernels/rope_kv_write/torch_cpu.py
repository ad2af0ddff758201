"""The op as a chain of the ops it consists of: on a CPU a fused kernel would win little."""

import torch

from quire.kernels.paged_attention import write_kv
from quire.kernels.rms_norm import rms_norm
from quire.kernels.rope import rope


def rope_kv_write(
    qkv: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor],
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    num_heads: int,
    query_norm: torch.Tensor | None,
    key_norm: torch.Tensor | None,
    epsilon: float,
) -> torch.Tensor:
    """See `quire.kernels.rope_kv_write.rope_kv_write`."""
    num_kv_heads, head_dim = key_cache.shape[2:]
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    value = heads[:, num_heads + num_kv_heads :]
    if query_norm is None or key_norm is None:
        turned = rope(heads[:, : num_heads + num_kv_heads], *rotation)
        query, key = turned[:, :num_heads].contiguous(), turned[:, num_heads:]
    else:
        query = rope(rms_norm(heads[:, :num_heads], query_norm, epsilon), *rotation)
        key = rope(rms_norm(heads[:, num_heads : num_heads + num_kv_heads], key_norm, epsilon), *rotation)
    write_kv(key, value, key_cache, value_cache, slot_mapping)
    return query
