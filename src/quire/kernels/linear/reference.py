"""The product and its options in float64."""

from typing import TYPE_CHECKING

import torch

from quire.kernels.rms_norm.reference import rms_norm
from quire.kernels.silu_mul.reference import silu_mul

if TYPE_CHECKING:
    from quire.kernels.linear import NormWeight


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    norm: "NormWeight | None" = None,
    gated: bool = False,
    add_to: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """See `quire.kernels.linear.linear`; the weight is [out, in]. Does not modify `add_to`."""
    wide = x.double()
    if norm is not None:
        wide = rms_norm(wide, norm.weight.double(), norm.epsilon)
    product = (wide[:, None, :] * weight.double()[None, :, :]).sum(dim=-1)
    if bias is not None:
        product = product + bias.double()
    if gated:
        product = silu_mul(product)
    if add_to is not None:
        product = add_to.double() + product
    return product.to(out_dtype or x.dtype)


def rounded_to_int8(x: torch.Tensor) -> torch.Tensor:
    """x [T, in] as quantised products see it: each block of 32 columns in int8 under a scale of its own, float64."""
    num_rows, width = x.shape
    blocks = torch.nn.functional.pad(x.float(), (0, -width % 32)).view(num_rows, -1, 32)
    largest = blocks.abs().amax(dim=-1, keepdim=True)
    inverse = torch.where(largest > 0, 127.0 / largest, 0.0)
    numbers = (blocks * inverse).round().double() * (largest / 127.0).double()
    return numbers.view(num_rows, -1)[:, :width]
