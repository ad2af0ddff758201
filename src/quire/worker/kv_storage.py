"""The KV cache's memory."""

import mmap
from dataclasses import dataclass, field
from math import prod

import torch

TensorPairs = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(slots=True, frozen=True)
class KVCaches:
    """Keys and values of all layers.

    Attributes:
        layers: Per layer keys and values, each [num_blocks, block_size, num_kv_heads, head_dim].
        scales: Of int8 caches, per layer: what each vector is multiplied with, [num_blocks, block_size, num_kv_heads]
            float32. Empty for others.
    """

    layers: TensorPairs
    scales: TensorPairs = field(default_factory=list)

    @property
    def dtype(self) -> torch.dtype:
        """Number format."""
        return self.layers[0][0].dtype

    @property
    def num_blocks(self) -> int:
        """Of each layer."""
        return self.layers[0][0].shape[0]

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self.layers[0][0].shape[1]

    @property
    def tensors(self) -> TensorPairs:
        """All that a copy of a block copies."""
        return self.layers + self.scales


def allocate_caches(
    *, num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> KVCaches:
    """Keys and values with the scales that their format has, zeros; see `allocate_kv_caches`."""
    layers = allocate_kv_caches(
        num_layers=num_layers,
        num_blocks=num_blocks,
        block_size=block_size,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        dtype=dtype,
    )
    if dtype != torch.int8:
        return KVCaches(layers)
    shape = (num_blocks, block_size, num_kv_heads)
    scales = [(_lazy_zeros(shape, torch.float32), _lazy_zeros(shape, torch.float32)) for _ in range(num_layers)]
    return KVCaches(layers, scales)


def allocate_kv_caches(
    *, num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> TensorPairs:
    """Keys and values per layer, each [num_blocks, block_size, num_kv_heads, head_dim], zeros.

    A page of memory is taken from the system when it is first written: an idle cache costs nothing.
    """
    shape = (num_blocks, block_size, num_kv_heads, head_dim)
    return [(_lazy_zeros(shape, dtype), _lazy_zeros(shape, dtype)) for _ in range(num_layers)]


def block_num_bytes(*, num_layers: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers, keys and values with their scales."""
    vector_bytes = head_dim * dtype.itemsize + (torch.float32.itemsize if dtype == torch.int8 else 0)
    return 2 * num_layers * block_size * num_kv_heads * vector_bytes


def _lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros [shape] in pages that the system fills in on first use. `torch.zeros` would write all of them now."""
    num_bytes = prod(shape) * dtype.itemsize
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
