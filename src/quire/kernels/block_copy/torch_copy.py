"""Block copies in torch: one gather and one scatter per tensor, on any device."""

from collections.abc import Sequence

import torch


def copy_blocks(kv_caches: list[tuple[torch.Tensor, torch.Tensor]], pairs: Sequence[tuple[int, int]]) -> None:
    """See `quire.kernels.block_copy.copy_blocks`."""
    device = kv_caches[0][0].device
    indices = torch.tensor(pairs, dtype=torch.int64, pin_memory=device.type == "cuda")
    source, destination = indices.to(device, non_blocking=True).T.contiguous()
    for keys, values in kv_caches:
        keys.index_copy_(0, destination, keys.index_select(0, source))
        values.index_copy_(0, destination, values.index_select(0, source))
