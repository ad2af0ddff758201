"""x @ weight.T + bias in float64."""

import torch


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """See `quire.kernels.linear.linear`; the weight is [out, in]."""
    product = (x.double()[:, None, :] * weight.double()[None, :, :]).sum(dim=-1)
    return (product if bias is None else product + bias.double()).to(x.dtype)
