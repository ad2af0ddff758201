"""Root-mean-square normalisation."""

import torch
from torch import nn

from quire.kernels.linear import NormWeight
from quire.kernels.rms_norm import rms_norm
from quire.layers.parameter import empty_parameter


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + epsilon) * weight over the last dimension."""

    def __init__(self, size: int, epsilon: float, *, dtype: torch.dtype, device: str = "meta") -> None:
        super().__init__()
        self.weight = empty_parameter(size, dtype=dtype, device=device)
        self.epsilon = epsilon

    @property
    def spec(self) -> NormWeight:
        """The norm as a prologue of a matrix product."""
        return NormWeight(self.weight, self.epsilon)

    def forward(self, x: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """[..., size] -> [..., size]; with `rows` [N] only those of x [T, size]."""
        return rms_norm(x, self.weight, self.epsilon, rows)
