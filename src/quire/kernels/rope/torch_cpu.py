"""Rope in three passes: a rotation by R/2 exchanges the halves, the sign sits in the sines."""

import torch


def rope(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """See `quire.kernels.rope.rope`."""
    size = cosines.shape[-1]
    if size < x.shape[-1]:
        return torch.cat((rope(x[..., :size], cosines, sines), x[..., size:]), dim=-1)
    return torch.mul(x, cosines).addcmul_(torch.roll(x, size // 2, dims=-1), sines)
