"""Rotary position embedding in the rotate-half layout (dimension i turns with dimension i + R/2)."""

import torch

from quire.kernels.native.recording import StepInput
from quire.kernels.rope import torch_cpu

__all__ = ["rope", "rope_tables"]


def rope_tables(
    positions: torch.Tensor, inverse_frequencies: torch.Tensor, factor: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of a step, made once for all layers.

    They are computed from the positions: no table of the longest context is kept, and at any length they are as exact
    as angles in float32 allow.

    Args:
        positions: [T] int64; on a GPU int32 will do, and -1 marks padding, whose values mean nothing.
        inverse_frequencies: [R/2] float32, radians per position.
        factor: Multiplies cosines and sines.
        dtype: That of the queries.

    Returns:
        A pair for `rope` and `rope_kv_write` on the same device, whose layout is that device's matter.

        On a CPU, of `dtype`: cosines [T, 1, R], both halves equal, and sines [T, 1, R], the first half negated.
        On a GPU, float32: cosines [T, R/2] and sines [T, R/2].
    """
    if isinstance(positions, StepInput):
        assert positions.recording is not None
        return positions.recording.rope_tables(inverse_frequencies, factor)
    if positions.is_cuda:
        from quire.kernels.rope import triton

        return triton.rope_tables(positions, inverse_frequencies, factor)
    angles = torch.outer(positions.to(torch.float32), inverse_frequencies)
    cosines, sines = angles.cos().mul_(factor), angles.sin().mul_(factor)
    return (
        torch.cat((cosines, cosines), dim=-1).unsqueeze_(1).to(dtype),
        torch.cat((-sines, sines), dim=-1).unsqueeze_(1).to(dtype),
    )


def rope(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Turns the first R dimensions of every head by its token's angles. On a CPU; a GPU has `rope_kv_write`.

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
