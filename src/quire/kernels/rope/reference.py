"""Rope as complex rotations, one token and one pair of dimensions at a time."""

import torch


def rope_tables(
    positions: torch.Tensor, inverse_frequencies: torch.Tensor, factor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, each [T, R/2] float64, of angles that are rounded to float32 as everywhere."""
    angles = (positions.float()[:, None] * inverse_frequencies[None, :]).double()
    return angles.cos() * factor, angles.sin() * factor


def rope(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """See `quire.kernels.rope.rope`; the tables [T, R/2] are those of `rope_tables` above."""
    half = cosines.shape[1]
    turned = x.clone()
    for token in range(x.shape[0]):
        for i in range(half):
            turn = complex(cosines[token, i].item(), sines[token, i].item())
            for head in range(x.shape[1]):
                point = complex(x[token, head, i].item(), x[token, head, half + i].item()) * turn
                turned[token, head, i], turned[token, head, half + i] = point.real, point.imag
    return turned
