"""On a GPU: our own kernels where reading the weight is all the work, cuBLAS where there is arithmetic to do.

float32 is there for comparisons: one kernel for any number of rows, so that a row does not depend on the others.
"""

from typing import TYPE_CHECKING

import torch

from quire.kernels.linear import tiles, triton_float32, triton_skinny, triton_vector
from quire.kernels.rms_norm import rms_norm
from quire.kernels.silu_mul import silu_mul

if TYPE_CHECKING:
    from quire.kernels.linear import NormWeight

_HALF_FORMATS = (torch.bfloat16, torch.float16)


def pack(weight: torch.Tensor) -> torch.Tensor:
    """The weight itself, [out, in] contiguous."""
    triton_skinny.workspace(weight.device)
    return weight.detach().contiguous()


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm: "NormWeight | None",
    gated: bool,
    add_to: torch.Tensor | None,
    out_dtype: torch.dtype | None,
) -> torch.Tensor:
    """See `quire.kernels.linear.linear`."""
    assert x.is_contiguous() and (add_to is None or add_to.is_contiguous()), "rows must lie one after the other"
    if x.dtype == torch.float32 and x.shape[0]:
        return _in_float32(x, weight, bias, norm, gated, add_to, out_dtype)
    chosen = None
    if x.dtype in _HALF_FORMATS:
        chosen = tiles.choose(x.shape[0], *weight.shape, gated=gated)
    if chosen is None:
        return unfused(x, weight, bias, norm, gated, add_to, out_dtype)
    return fused(x, weight, bias, norm, gated, add_to, out_dtype, chosen)


def fused(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm: "NormWeight | None",
    gated: bool,
    add_to: torch.Tensor | None,
    out_dtype: torch.dtype | None,
    chosen: tiles.Tiles,
) -> torch.Tensor:
    """The same with these tiles, in one launch; the norm, where there is one, in another before `SkinnyTiles`.

    There the norm would stand between shared memory and the tensor cores, at the cost of more than its launch.
    """
    out = add_to
    if out is None:
        num_out = weight.shape[0] // 2 if gated else weight.shape[0]
        out = torch.empty((x.shape[0], num_out), dtype=out_dtype or x.dtype, device=x.device)
    add = add_to is not None
    if isinstance(chosen, tiles.VectorTiles):
        launch = triton_vector.launch(x, weight, bias, norm, out, chosen, gated=gated, add=add)
    else:
        if norm is not None:
            x = rms_norm(x, norm.weight, norm.epsilon)
        launch = triton_skinny.launch(x, weight, bias, out, chosen, gated=gated, add=add)
    launch.run()
    return out


def _in_float32(
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
    out = x.new_empty((x.shape[0], weight.shape[0])) if add_to is None else add_to
    triton_float32.multiply(x, weight, bias, out, add=add_to is not None)
    if gated:
        out = silu_mul(out)
    return out if out_dtype is None else out.to(out_dtype)


def unfused(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm: "NormWeight | None",
    gated: bool,
    add_to: torch.Tensor | None,
    out_dtype: torch.dtype | None,
) -> torch.Tensor:
    """The same with cuBLAS, an operation after the other."""
    if x.shape[0] == 0:
        num_out = weight.shape[0] // 2 if gated else weight.shape[0]
        return x.new_empty((0, num_out), dtype=out_dtype) if add_to is None else add_to
    if norm is not None:
        x = rms_norm(x, norm.weight, norm.epsilon)
    if add_to is not None:
        add_to.addmm_(x, weight.t())
        return add_to if bias is None else add_to.add_(bias)
    if out_dtype is not None and out_dtype != x.dtype and not gated:
        product = torch.mm(x, weight.t(), out_dtype=out_dtype)
        return product if bias is None else product.add_(bias)
    product = torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())
    if gated:
        product = silu_mul(product)
    return product if out_dtype is None else product.to(out_dtype)
