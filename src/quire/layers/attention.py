"""Self-attention over the paged KV cache."""

from dataclasses import dataclass

import torch
from torch import nn

from quire.kernels.paged_attention import attend, write_kv
from quire.kernels.rope import rope
from quire.layers.forward_batch import ForwardBatch
from quire.layers.linear import Linear
from quire.layers.norm import RMSNorm


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """Sizes and options of an attention layer.

    Attributes:
        bias: Whether the query, key and value projections have a bias.
        output_bias: Whether the output projection has one.
        qk_norm_epsilon: Queries and keys are RMS-normed per head before rope; None for no norm.
        sliding_window: Positions that a token sees, itself included; None for all.
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    bias: bool = False
    output_bias: bool = False
    qk_norm_epsilon: float | None = None
    sliding_window: int | None = None


class Attention(nn.Module):
    """Queries, keys and values are one product, in this order, head after head."""

    def __init__(self, shape: AttentionShape, layer_index: int, *, dtype: torch.dtype, device: str = "meta") -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
        self.layer_index = layer_index
        self.sliding_window = shape.sliding_window
        self.scale = shape.head_dim**-0.5
        width = shape.num_heads * shape.head_dim
        qkv_width = width + 2 * shape.num_kv_heads * shape.head_dim
        self.qkv = Linear(shape.hidden_size, qkv_width, bias=shape.bias, dtype=dtype, device=device)
        self.output = Linear(width, shape.hidden_size, bias=shape.output_bias, dtype=dtype, device=device)
        self.query_norm: RMSNorm | None = None
        self.key_norm: RMSNorm | None = None
        if shape.qk_norm_epsilon is not None:
            self.query_norm = RMSNorm(shape.head_dim, shape.qk_norm_epsilon, dtype=dtype, device=device)
            self.key_norm = RMSNorm(shape.head_dim, shape.qk_norm_epsilon, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor, batch: ForwardBatch, rows: torch.Tensor | None = None) -> torch.Tensor:
        """[T, hidden] -> [T, hidden], or [N, hidden] of `rows` [N] only. Writes the layer's keys and values."""
        assert batch.attention is not None, "the model prepares the batch"
        key_cache, value_cache = batch.kv_caches[self.layer_index]
        heads = self.qkv.forward(x).view(x.shape[0], -1, self.head_dim)
        query, key = self._turned(heads[:, : self.num_heads + self.num_kv_heads], batch)
        write_kv(key, heads[:, self.num_heads + self.num_kv_heads :], key_cache, value_cache, batch.slot_mapping)
        attended = attend(query, key_cache, value_cache, batch.attention, self.scale, self.sliding_window)
        attended = attended.view(x.shape[0], -1)
        return self.output.forward(attended if rows is None else attended.index_select(0, rows))

    def _turned(self, heads: torch.Tensor, batch: ForwardBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys [T, H + H_kv, D] after norm and rope."""
        assert batch.rotation is not None, "the model prepares the batch"
        cosines, sines = batch.rotation
        if self.query_norm is None or self.key_norm is None:
            turned = rope(heads, cosines, sines)
            return turned[:, : self.num_heads], turned[:, self.num_heads :]
        query = self.query_norm.forward(heads[:, : self.num_heads])
        key = self.key_norm.forward(heads[:, self.num_heads :])
        return rope(query, cosines, sines), rope(key, cosines, sines)
