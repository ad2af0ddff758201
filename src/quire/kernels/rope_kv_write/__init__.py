"""From the product of queries, keys and values to what attention reads: norm of the heads, rope, write to the cache."""

import torch

from quire.kernels.native.recording import Recorded
from quire.kernels.rope_kv_write import torch_cpu

__all__ = ["rope_kv_write"]


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
    """Norms queries and keys per head, turns their first R dimensions, writes keys and values into their slots.

    Modifies the caches; does not modify qkv.

    Args:
        qkv: [T, (H + 2 * H_kv) * D]: queries, keys, values, each head after head.
        rotation: From `quire.kernels.rope.rope_tables` of this step, on this device.
        key_cache: [num_blocks, block_size, H_kv, D] contiguous; may have another number format.
        value_cache: The same.
        slot_mapping: [T] int64; block * block_size + offset of each token. On a GPU -1 marks rows of which nothing
            is written: the padding of a graph. A CPU has no such rows and refuses them.
        num_heads: H.
        num_kv_heads: H_kv.
        query_norm: [D], weight of the queries' RMS norm; None for no norm.
        key_norm: [D], that of the keys; None where query_norm is None.
        epsilon: Of both norms.

    Returns:
        query: [T, H, D], a new contiguous tensor of qkv's dtype.
    """
    if isinstance(qkv, Recorded):
        return qkv.recording.rope_kv_write(qkv, rotation[0], key_cache, num_heads, query_norm, key_norm, epsilon)
    head_dim = key_cache.shape[3]
    expected = (len(slot_mapping), (num_heads + 2 * num_kv_heads) * head_dim)
    assert qkv.shape == expected and key_cache.shape[2] == num_kv_heads, (
        f"qkv {tuple(qkv.shape)}, expected {expected}, cache {tuple(key_cache.shape)}"
    )
    assert (query_norm is None) == (key_norm is None), "norms of both queries and keys, or of neither"
    if qkv.is_cuda:
        from quire.kernels.rope_kv_write import triton

        return triton.rope_kv_write(
            qkv, rotation, key_cache, value_cache, slot_mapping, num_heads, query_norm, key_norm, epsilon
        )
    return torch_cpu.rope_kv_write(
        qkv, rotation, key_cache, value_cache, slot_mapping, num_heads, query_norm, key_norm, epsilon
    )
