"""Self-attention over the paged KV cache."""

from dataclasses import dataclass

import torch
from torch import nn

from quire.kernels.paged_attention import attend
from quire.kernels.rope_kv_write import rope_kv_write
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
        self.qk_norm_epsilon = shape.qk_norm_epsilon or 0.0
        self.query_norm: RMSNorm | None = None
        self.key_norm: RMSNorm | None = None
        if shape.qk_norm_epsilon is not None:
            self.query_norm = RMSNorm(shape.head_dim, shape.qk_norm_epsilon, dtype=dtype, device=device)
            self.key_norm = RMSNorm(shape.head_dim, shape.qk_norm_epsilon, dtype=dtype, device=device)

    def forward(
        self, stream: torch.Tensor, norm: RMSNorm, batch: ForwardBatch, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Adds the attention of norm(stream) to the stream [T, hidden] in place and returns it.

        With `rows` [N] only those rows are added to and returned, as a new [N, hidden]. Writes the layer's keys and
        values for all T tokens either way.
        """
        key_cache, value_cache = batch.kv_caches[self.layer_index]
        query = self._query(self.qkv.forward(stream, norm=norm), key_cache, value_cache, batch)
        attended = attend(query, key_cache, value_cache, batch.attention, self.scale, self.sliding_window)
        attended = attended.flatten(1)
        if rows is not None:
            stream, attended = stream.index_select(0, rows), attended.index_select(0, rows)
        return self.output.forward(attended, add_to=stream)

    def _query(
        self, qkv: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, batch: ForwardBatch
    ) -> torch.Tensor:
        """Queries [T, H, D] after norm and rope; keys and values have gone into their slots."""
        assert batch.rotation is not None, "the model prepares the batch"
        return rope_kv_write(
            qkv,
            batch.rotation,
            key_cache,
            value_cache,
            batch.slot_mapping,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            query_norm=None if self.query_norm is None else self.query_norm.weight,
            key_norm=None if self.key_norm is None else self.key_norm.weight,
            epsilon=self.qk_norm_epsilon,
        )
