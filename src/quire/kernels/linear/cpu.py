"""What stands before and after a product on a CPU: one operation after the other.

A decoder's rows fit the caches, and a product there takes far longer than a pass over its input or output.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from quire.kernels.rms_norm import rms_norm
from quire.kernels.silu_mul import silu_mul

if TYPE_CHECKING:
    from quire.kernels.linear import Multiply, NormWeight

PlainMultiply = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def composed(multiply: PlainMultiply) -> "Multiply":
    """Adds the options of `quire.kernels.linear.linear` to a product x @ weight.T + bias."""

    def multiply_with_options(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        norm: "NormWeight | None",
        gated: bool,
        add_to: torch.Tensor | None,
        out_dtype: torch.dtype | None,
    ) -> torch.Tensor:
        if norm is not None:
            x = rms_norm(x, norm.weight, norm.epsilon)
        product = multiply(x, weight, bias)
        if gated:
            product = silu_mul(product)
        if add_to is not None:
            return add_to.add_(product)
        return product if out_dtype is None else product.to(out_dtype)

    return multiply_with_options
