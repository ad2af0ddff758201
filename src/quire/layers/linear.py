"""Linear projection."""

import torch
from torch import nn

from quire.kernels.linear import PackedWeight, linear, pack
from quire.layers.norm import RMSNorm
from quire.layers.parameter import empty_parameter


class Linear(nn.Module):
    """x @ weight.T + bias.

    `finish_loading` hands the weight over to the kernel's own layout and gives up the parameter.

    Attributes:
        weight: [out, in]; None after `finish_loading`.
        bias: [out] or None.
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool, dtype: torch.dtype, device: str = "meta"
    ) -> None:
        super().__init__()
        self.weight: nn.Parameter | None = empty_parameter(out_features, in_features, dtype=dtype, device=device)
        self.bias = empty_parameter(out_features, dtype=dtype, device=device) if bias else None
        self.packed: PackedWeight | None = None

    def finish_loading(self) -> None:
        """Packs the weight. No effect the second time."""
        if self.weight is not None:
            self.packed = pack(self.weight)
            self.weight = None

    def forward(
        self,
        x: torch.Tensor,
        *,
        norm: RMSNorm | None = None,
        gated: bool = False,
        add_to: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[T, in] -> [T, out]; see `quire.kernels.linear.linear` for what can be fused.

        Args:
            x: [T, in].
            norm: Applied to x first.
            gated: The result is silu(first half) * second half, [T, out / 2].
            add_to: [T, out]; the result is added to it in place.
        """
        assert self.packed is not None, "finish_loading has not been called"
        spec = None if norm is None else norm.spec
        return linear(x, self.packed, self.bias, norm=spec, gated=gated, add_to=add_to)
