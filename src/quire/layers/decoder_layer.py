"""One layer of a decoder-only transformer."""

import torch
from torch import nn

from quire.layers.attention import Attention, AttentionShape
from quire.layers.forward_batch import ForwardBatch
from quire.layers.mlp import GatedMLP
from quire.layers.norm import RMSNorm


class DecoderLayer(nn.Module):
    """stream += attention(norm(stream)); stream += mlp(norm(stream)).

    Norms and additions are part of the products next to them: a kernel may fuse them.
    """

    def __init__(
        self,
        shape: AttentionShape,
        layer_index: int,
        *,
        intermediate_size: int,
        mlp_bias: bool,
        epsilon: float,
        dtype: torch.dtype,
        device: str = "meta",
    ) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(shape.hidden_size, epsilon, dtype=dtype, device=device)
        self.attention = Attention(shape, layer_index, dtype=dtype, device=device)
        self.mlp_norm = RMSNorm(shape.hidden_size, epsilon, dtype=dtype, device=device)
        self.mlp = GatedMLP(shape.hidden_size, intermediate_size, bias=mlp_bias, dtype=dtype, device=device)

    def forward(self, stream: torch.Tensor, batch: ForwardBatch, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Adds attention and MLP to the stream [T, hidden] in place and returns it.

        With `rows` [N], for the last layer: a new stream [N, hidden] of the rows that anyone will look at.
        """
        stream = self.attention.forward(stream, self.attention_norm, batch, rows)
        return self.mlp.forward(stream, self.mlp_norm)
