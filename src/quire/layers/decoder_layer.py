"""One layer of a decoder-only transformer."""

import torch
from torch import nn

from quire.layers.attention import Attention, AttentionShape
from quire.layers.forward_batch import ForwardBatch
from quire.layers.mlp import GatedMLP
from quire.layers.norm import RMSNorm


class DecoderLayer(nn.Module):
    """stream += attention(norm(stream)); stream += mlp(norm(stream)).

    Each addition is left to the norm that follows it, so a layer returns the update that its successor adds.
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

    def forward(self, stream: torch.Tensor, update: torch.Tensor | None, batch: ForwardBatch) -> torch.Tensor:
        """Adds `update` and the attention to the stream [T, hidden] in place; returns the MLP's update."""
        attended = self.attention.forward(self.attention_norm.forward(stream, update), batch)
        return self.mlp.forward(self.mlp_norm.forward(stream, attended))

    def forward_rows(
        self, stream: torch.Tensor, update: torch.Tensor | None, batch: ForwardBatch, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`forward` for the last layer: (stream, update) [N, hidden] of the rows [N] that anyone will look at."""
        attended = self.attention.forward(self.attention_norm.forward(stream, update), batch, rows)
        stream = stream.index_select(0, rows)
        return stream, self.mlp.forward(self.mlp_norm.forward(stream, attended))
