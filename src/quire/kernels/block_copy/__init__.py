"""Copies of whole KV blocks: a sequence that shares a block and must write into it gets its own."""

from collections.abc import Sequence

import torch

from quire.kernels.block_copy import torch_copy

__all__ = ["copy_blocks"]


def copy_blocks(kv_caches: list[tuple[torch.Tensor, torch.Tensor]], pairs: Sequence[tuple[int, int]]) -> None:
    """Copies blocks in every layer; all sources are read before anything is written. Modifies the caches.

    On a GPU it neither waits for the device nor keeps `pairs`.

    Args:
        kv_caches: Per layer keys and values, each [num_blocks, block_size, H_kv, D] contiguous, all of one shape.
        pairs: (source, destination) blocks, at least one; no destination twice.
    """
    is_in_any_order = {source for source, _ in pairs}.isdisjoint(destination for _, destination in pairs)
    if kv_caches[0][0].is_cuda and is_in_any_order:
        from quire.kernels.block_copy import triton

        triton.copy_blocks(kv_caches, pairs)
    else:
        torch_copy.copy_blocks(kv_caches, pairs)
