"""Root-mean-square normalisation."""

import torch
from torch import nn

from quire.kernels.rms_norm import rms_norm
from quire.layers.parameter import empty_parameter


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + epsilon) * weight over the last dimension."""

    def __init__(self, size: int, epsilon: float, *, dtype: torch.dtype, device: str = "meta") -> None:
        super().__init__()
        self.weight = empty_parameter(size, dtype=dtype, device=device)
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor, update: torch.Tensor | None = None) -> torch.Tensor:
        """[..., size] -> [..., size]. With `update`, x += update in place before."""
        return rms_norm(x, self.weight, self.epsilon, update)
