"""RMS norm in few passes over memory; `torch.nn.functional.rms_norm` on a CPU is a chain of unfused operations."""

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, rows: torch.Tensor | None = None) -> torch.Tensor:
    """See `quire.kernels.rms_norm.rms_norm`."""
    if rows is not None:
        x = x.index_select(0, rows)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale = norm.mul_(norm).mul_(1.0 / x.shape[-1]).add_(epsilon).rsqrt_()
    return torch.mul(x, scale).mul_(weight).to(x.dtype)
