"""RMS norm as the formula says."""

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, rows: torch.Tensor | None = None) -> torch.Tensor:
    """See `quire.kernels.rms_norm.rms_norm`."""
    wide = x.double() if rows is None else torch.stack([x[row].double() for row in rows.tolist()])
    mean_of_squares = (wide * wide).mean(dim=-1, keepdim=True)
    return (wide / (mean_of_squares + epsilon).sqrt() * weight.double()).to(x.dtype)
