"""The gated feed-forward block."""

import torch
from torch import nn

from quire.layers.linear import Linear
from quire.layers.norm import RMSNorm


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)); gate and up are one product, gate first."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, *, bias: bool, dtype: torch.dtype, device: str = "meta"
    ) -> None:
        super().__init__()
        self.gate_up = Linear(hidden_size, 2 * intermediate_size, bias=bias, dtype=dtype, device=device)
        self.down = Linear(intermediate_size, hidden_size, bias=bias, dtype=dtype, device=device)

    def forward(self, stream: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
        """Adds the block's output for norm(stream) to the stream [T, hidden] in place and returns it."""
        return self.down.forward(self.gate_up.forward(stream, norm=norm, gated=True), add_to=stream)
