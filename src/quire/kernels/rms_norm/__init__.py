"""Root-mean-square normalisation, with the residual addition that precedes it."""

import torch

from quire.kernels.rms_norm import torch_cpu

__all__ = ["rms_norm"]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, update: torch.Tensor | None = None) -> torch.Tensor:
    """x / sqrt(mean(x²) + epsilon) * weight over the last dimension, computed in float32.

    Args:
        x: [..., W]. With `update`, modified in place: x += update, and the sum is normalised.
        weight: [W], of x's dtype.
        epsilon: Keeps a row of zeros finite.
        update: [..., W], the shape of x; None for no addition.

    Returns:
        [..., W], a new contiguous tensor of x's dtype.
    """
    assert weight.shape == x.shape[-1:], f"weight {tuple(weight.shape)} does not fit x {tuple(x.shape)}"
    assert update is None or update.shape == x.shape, f"update {tuple(update.shape)}, x {tuple(x.shape)}"
    return torch_cpu.rms_norm(x, weight, epsilon, update)
