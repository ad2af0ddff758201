"""The KV cache's memory."""

import mmap
from math import prod

import torch


def allocate_kv_caches(
    *, num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values per layer, each [num_blocks, block_size, num_kv_heads, head_dim], zeros.

    A page of memory is taken from the system when it is first written: an idle cache costs nothing.
    """
    shape = (num_blocks, block_size, num_kv_heads, head_dim)
    return [(_lazy_zeros(shape, dtype), _lazy_zeros(shape, dtype)) for _ in range(num_layers)]


def block_num_bytes(*, num_layers: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers, keys and values."""
    return 2 * num_layers * block_size * num_kv_heads * head_dim * dtype.itemsize


def _lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros [shape] in pages that the system fills in on first use. `torch.zeros` would write all of them now."""
    num_bytes = prod(shape) * dtype.itemsize
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
