"""Root-mean-square normalisation."""

import torch

from quire.kernels.native.recording import Recorded
from quire.kernels.rms_norm import torch_cpu

__all__ = ["rms_norm"]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, rows: torch.Tensor | None = None) -> torch.Tensor:
    """x / sqrt(mean(x²) + epsilon) * weight over the last dimension, computed in float32. Does not modify x.

    Args:
        x: [..., W]; [T, W] where there are `rows`.
        weight: [W], of x's dtype.
        epsilon: Keeps a row of zeros finite.
        rows: [N] int64 or int32; only these rows of x are normalised and returned, in this order. None for all.

    Returns:
        [..., W], or [N, W] with `rows`; a new contiguous tensor of x's dtype.
    """
    if isinstance(x, Recorded):
        assert rows is None
        return x.recording.rms_norm(x, weight, epsilon)
    assert weight.shape == x.shape[-1:], f"weight {tuple(weight.shape)} does not fit x {tuple(x.shape)}"
    assert rows is None or (rows.dim() == 1 and x.dim() == 2), f"rows {tuple(rows.shape)} of x {tuple(x.shape)}"
    if x.is_cuda:
        from quire.kernels.rms_norm import triton

        return triton.rms_norm(x, weight, epsilon, rows)
    return torch_cpu.rms_norm(x, weight, epsilon, rows)
