"""Rotary position embedding in the rotate-half layout (dimension i turns with dimension i + R/2)."""

import torch

from quire.kernels.rope import torch_cpu

__all__ = ["rope", "rope_tables"]


def rope_tables(
    positions: torch.Tensor, inverse_frequencies: torch.Tensor, factor: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of a step, made once for all layers.

    They are computed from the positions: exact at any length, and no table of the longest context is kept.

    Args:
        positions: [T] int64.
        inverse_frequencies: [R/2] float32, radians per position.
        factor: Multiplies cosines and sines.
        dtype: Of the tables; that of the queries.

    Returns:
        cosines: [T, 1, R] of `dtype`; both halves are equal.
        sines: [T, 1, R] of `dtype`; the first half is negated.
    """
    angles = torch.outer(positions.to(torch.float32), inverse_frequencies)
    cosines, sines = angles.cos().mul_(factor), angles.sin().mul_(factor)
    return (
        torch.cat((cosines, cosines), dim=-1).unsqueeze_(1).to(dtype),
        torch.cat((-sines, sines), dim=-1).unsqueeze_(1).to(dtype),
    )


def rope(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Turns the first R dimensions of every head by its token's angles.

    Args:
        x: [T, H, D] queries or keys, D >= R.
        cosines: [T, 1, R] from `rope_tables`.
        sines: [T, 1, R] from `rope_tables`.

    Returns:
        [T, H, D], a new tensor.
    """
    assert x.dim() == 3 and cosines.shape[0] == x.shape[0] and cosines.shape[2] <= x.shape[2], (
        f"tables {tuple(cosines.shape)} do not fit x {tuple(x.shape)}"
    )
    return torch_cpu.rope(x, cosines, sines)
