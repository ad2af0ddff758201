"""RMS norm as the formula says."""

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, update: torch.Tensor | None = None) -> torch.Tensor:
    """See `quire.kernels.rms_norm.rms_norm`. Modifies x where there is an update."""
    if update is not None:
        x.copy_(x + update)
    wide = x.double()
    mean_of_squares = (wide * wide).mean(dim=-1, keepdim=True)
    return (wide / (mean_of_squares + epsilon).sqrt() * weight.double()).to(x.dtype)
