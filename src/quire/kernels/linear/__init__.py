"""Matrix products with a weight that stays the same: packed once, multiplied many times.

The implementation is chosen per weight when it is packed: Triton and cuBLAS on a GPU (`cuda.py`), oneDNN's blocked
layout where this build of torch and this CPU have it, plain torch otherwise. What stands right before and after a
product in a decoder layer (norm, gate, residual addition) belongs to the operation, so that a GPU computes it in the
same launch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from quire.kernels.linear import cpu, onednn, torch_cpu
from quire.kernels.native.recording import NormWeight, Recorded

__all__ = ["NormWeight", "PackedWeight", "linear", "pack"]


Multiply = Callable[
    [
        torch.Tensor,
        Any,
        torch.Tensor | None,
        NormWeight | None,
        bool,
        torch.Tensor | None,
        torch.dtype | None,
    ],
    torch.Tensor,
]


@dataclass(slots=True, frozen=True)
class PackedWeight:
    """A weight in the layout of the implementation that multiplies it.

    Attributes:
        data: May be opaque; only `multiply` reads it.
        multiply: x, data, bias, norm, gated, add_to, out_dtype, as in `linear`.
        num_bytes: Memory that it takes.
    """

    data: Any
    multiply: Multiply
    out_features: int
    in_features: int
    num_bytes: int


def pack(weight: torch.Tensor) -> PackedWeight:
    """Copies a weight [out, in] into the fastest layout; the result may share memory with it where none is faster.

    The compiled CPU kernels have layouts of their own: `native.py`.

    On a GPU the weight must not change afterwards, not even between two products: a kernel loads it while its
    predecessors in the stream still run.
    """
    assert weight.dim() == 2, f"weight must be [out, in], got {tuple(weight.shape)}"
    out_features, in_features = weight.shape
    data, multiply = _implement(weight)
    return PackedWeight(data, multiply, out_features, in_features, weight.numel() * weight.itemsize)


def linear(
    x: torch.Tensor,
    weight: PackedWeight,
    bias: torch.Tensor | None = None,
    *,
    norm: NormWeight | None = None,
    gated: bool = False,
    add_to: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """y = rms_norm(x) @ weight.T + bias, and what is done with it. Does not modify x.

    Args:
        x: [T, in], contiguous, of the weight's dtype.
        weight: Packed from [out, in].
        bias: [out].
        norm: Applied to x first; None for x as it stands.
        gated: The weight is [2 * I, in] with the gate's rows first; the result is silu(y[:, :I]) * y[:, I:], [T, I].
        add_to: [T, out], contiguous; y is added to it in place. Not with `gated` or `out_dtype`, and not x itself.
        out_dtype: Of the result, x's where None. A GPU does not round to x's dtype on the way.

    Returns:
        [T, out] or [T, I]: `add_to` where there is one, else a new contiguous tensor.
    """
    if isinstance(x, Recorded):
        return x.recording.linear(x, weight, bias, norm, gated, add_to)
    assert x.dim() == 2 and x.shape[1] == weight.in_features, (
        f"x {tuple(x.shape)} does not fit a weight [{weight.out_features}, {weight.in_features}]"
    )
    assert add_to is None or (not gated and out_dtype is None and add_to.shape == (x.shape[0], weight.out_features)), (
        f"add_to {tuple(add_to.shape)} does not take the product of {tuple(x.shape)}, gated={gated}, {out_dtype}"
    )
    return weight.multiply(x, weight.data, bias, norm, gated, add_to, out_dtype)


def _implement(weight: torch.Tensor) -> tuple[torch.Tensor, Multiply]:
    if weight.is_cuda:
        from quire.kernels.linear import cuda

        return cuda.pack(weight), cuda.linear
    if onednn.is_usable(weight):
        return onednn.pack(weight), cpu.composed(onednn.multiply)
    return torch_cpu.pack(weight), cpu.composed(torch_cpu.multiply)
