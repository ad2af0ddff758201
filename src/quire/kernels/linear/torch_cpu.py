"""Plain torch, for builds and number formats without oneDNN."""

import torch
from torch.nn import functional


def pack(weight: torch.Tensor) -> torch.Tensor:
    """The weight itself."""
    return weight


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x @ weight.T + bias."""
    return functional.linear(x, weight, bias)
