"""Rope as complex rotations, one token and one pair of dimensions at a time."""

import torch


def rope(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """See `quire.kernels.rope.rope`."""
    half = cosines.shape[-1] // 2
    turned = x.clone()
    for token in range(x.shape[0]):
        for i in range(half):
            turn = complex(cosines[token, 0, i].item(), sines[token, 0, half + i].item())
            for head in range(x.shape[1]):
                point = complex(x[token, head, i].item(), x[token, head, half + i].item()) * turn
                turned[token, head, i], turned[token, head, half + i] = point.real, point.imag
    return turned
