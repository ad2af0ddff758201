"""Block copies as loops over a copy of the whole cache."""

from collections.abc import Sequence

import torch


def copy_blocks(kv_caches: list[tuple[torch.Tensor, torch.Tensor]], pairs: Sequence[tuple[int, int]]) -> None:
    """See `quire.kernels.block_copy.copy_blocks`."""
    for tensor in (tensor for layer in kv_caches for tensor in layer):
        before = tensor.clone()
        for source, destination in pairs:
            tensor[destination] = before[source]
