"""Matrix products with a weight that stays the same: packed once, multiplied many times.

The implementation is chosen per weight when it is packed: oneDNN's blocked layout where this build of torch and
this CPU have it, plain torch otherwise.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from quire.kernels.linear import onednn, torch_cpu

__all__ = ["PackedWeight", "linear", "pack"]

Multiply = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


@dataclass(slots=True, frozen=True)
class PackedWeight:
    """A weight in the layout of the implementation that multiplies it.

    Attributes:
        data: May be opaque; only `multiply` reads it.
        num_bytes: Memory that it takes.
    """

    data: torch.Tensor
    multiply: Multiply
    out_features: int
    in_features: int
    num_bytes: int


def pack(weight: torch.Tensor) -> PackedWeight:
    """Copies a weight [out, in] into the fastest layout; the result may share memory with it where none is faster."""
    assert weight.dim() == 2, f"weight must be [out, in], got {tuple(weight.shape)}"
    implementation = onednn if onednn.is_usable(weight) else torch_cpu
    data = implementation.pack(weight)
    out_features, in_features = weight.shape
    return PackedWeight(data, implementation.linear, out_features, in_features, weight.numel() * weight.itemsize)


def linear(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ weight.T + bias.

    Args:
        x: [T, in], of the weight's dtype.
        weight: Packed from [out, in].
        bias: [out].

    Returns:
        [T, out], a new contiguous tensor.
    """
    assert x.dim() == 2 and x.shape[1] == weight.in_features, (
        f"x {tuple(x.shape)} does not fit a weight [{weight.out_features}, {weight.in_features}]"
    )
    return weight.multiply(x, weight.data, bias)
