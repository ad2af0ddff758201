"""Plain torch, for builds and number formats without oneDNN."""

import torch
from torch.nn import functional


def pack(weight: torch.Tensor) -> torch.Tensor:
    """The weight itself."""
    return weight


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """See `quire.kernels.linear.linear`."""
    return functional.linear(x, weight, bias)
